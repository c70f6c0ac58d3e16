"""What programs are made of."""

import jax


def products(jaxpr):
    """All products of a program, those of its loops and branches included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def exact(found):
    return {str(e.params["precision"]) for e in found} == {"(Precision.HIGHEST, Precision.HIGHEST)"}
