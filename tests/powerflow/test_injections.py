"""The laws of loads and generators against the OpenDSS engine, their limits, and their derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax.feeder import Generator, Load, PVSystem, Storage
from gridjax.powerflow.injections import IMPEDANCE, Laws, factors, generator_law, load_law

KW, KVAR = 100.0, 40.0
# None of them on a limit: below, within and above every band that is used here, and beyond its far ends.
LOW = [0.0, 0.0004, 0.003, 0.1, 0.199, 0.301, 0.46, 0.499, 0.501, 0.55, 0.599, 0.601, 0.63, 0.69, 0.71, 0.79]
HIGH = [0.83, 0.899, 0.901, 0.949, 0.951, 1.0, 1.03, 1.049, 1.051, 1.099, 1.101, 1.149, 1.16, 1.201, 1.5]
VOLTS = np.array(LOW + HIGH)
ENGINE_VOLTS = VOLTS[VOLTS >= 0.1]
ZIPV = (0.3, 0.3, 0.4, 0.2, 0.3, 0.5, 0.64)


def law_of(device) -> Laws:
    """The coefficients of one device as arrays without axes."""
    law = load_law(device) if isinstance(device, Load) else generator_law(device)
    return Laws(**{k: jnp.asarray(v) for k, v in law.items()})


def amps(device, u, kw=KW, kvar=KVAR):
    """The complex current in kA that a one-phase device at 1 kV draws at the voltages u (pu)."""
    u = jnp.asarray(u, complex)
    laws = law_of(device)
    laws = jax.tree.map(lambda a: a.reshape((1,) * u.ndim), laws)
    fp, fq = factors(laws, u.real**2 + u.imag**2, True, True)
    return (kw * fp - 1j * kvar * fq) / 1e3 * u


def load(model, **limits) -> Load:
    if model == 8:
        limits = {"zipv": ZIPV} | limits
    return Load("l", "b.1.0", 1, "wye", model, 1.0, KW, KVAR, **limits)


LIMITS = ({}, {"vmin_pu": 0.7, "vmax_pu": 1.15, "vlow_pu": 0.3}, {"vmin_pu": 0.6, "vmax_pu": 1.2, "vlow_pu": 0.0})
LOADS = [load(model, **limits) for model, limits in itertools.product(range(1, 9), LIMITS)]
LOADS += [
    load(4, cvr_watts=0.8, cvr_vars=3.0),
    load(4, cvr_watts=1.6, cvr_vars=0.4, vmin_pu=0.8, vmax_pu=1.1),
    load(8, zipv=(0.3, 0.3, 0.4, 0.2, 0.3, 0.5, 0.0)),
    load(8, zipv=(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.83)),
    load(8, zipv=(-0.5, 1.2, 0.3, 0.1, 0.0, 0.9, 0.95), vmin_pu=0.9, vmax_pu=1.1),
    load(1, vmin_pu=0.0, vlow_pu=0.0),  # constant power all the way down
    load(6, vmin_pu=0.0, vlow_pu=0.0),
    load(1, vmin_pu=0.45, vlow_pu=0.45),  # no room for the straight line
]


GENERATORS = [
    Generator("g", "b.1.0", 1, "wye", 1.0, KW, KVAR),
    Generator("g", "b.1.0", 1, "wye", 1.0, KW, KVAR, vmin_pu=0.6, vmax_pu=1.2),
    Generator("g", "b.1.0", 1, "wye", 1.0, KW, KVAR, model=2),
    PVSystem("p", "b.1.0", 1, "wye", 1.0, 200.0, KW, kvar=KVAR, cut_in_percent=0.0, cut_out_percent=0.0),
    PVSystem("p", "b.1.0", 1, "wye", 1.0, 200.0, KW, kvar=KVAR, vmin_pu=0.7, vmax_pu=1.15),
    PVSystem("p", "b.1.0", 1, "wye", 1.0, 200.0, KW, kvar=KVAR, model=2),
    Storage("s", "b.1.0", 1, "wye", 1.0, 200.0, 200.0, 900.0, 500.0, kw=KW, kvar=KVAR),
    Storage("s", "b.1.0", 1, "wye", 1.0, 200.0, 200.0, 900.0, 500.0, kw=KW, kvar=KVAR, vmin_pu=0.6, vmax_pu=1.2),
    Storage("s", "b.1.0", 1, "wye", 1.0, 200.0, 200.0, 900.0, 500.0, kw=KW, kvar=KVAR, model=2),
]
KINDS = {
    Load: ("load", {"vmin_pu": "vminpu", "vmax_pu": "vmaxpu", "vlow_pu": "vlowpu",
                    "cvr_watts": "cvrwatts", "cvr_vars": "cvrvars"}, ""),
    Generator: ("generator", {"vmin_pu": "vminpu", "vmax_pu": "vmaxpu"}, ""),
    PVSystem: ("pvsystem", {"vmin_pu": "vminpu", "vmax_pu": "vmaxpu", "kva": "kva", "pmpp_kw": "pmpp"},
               "irradiance=1 %cutin=0 %cutout=0 "),
    Storage: ("storage", {"vmin_pu": "vminpu", "vmax_pu": "vmaxpu", "kva": "kva", "kw_rated": "kwrated",
                          "kwh_rated": "kwhrated"}, "state=discharging "),
}  # fmt: skip


def label(device) -> str:
    """What tells a case from the others of its kind."""
    names = ("model", "vmin_pu", "vmax_pu", "vlow_pu", "cvr_watts", "cvr_vars", "zipv")
    shown = [getattr(device, k, None) for k in names]
    return type(device).__name__ + "-" + "-".join(str(x) for x in shown if x is not None)


def engine(device) -> tuple[np.ndarray, np.ndarray]:
    """Voltages (kV) and currents (kA) of one device behind a stiff source, by OpenDSS."""
    dss = pytest.importorskip("dss")
    kind, options, more = KINDS[type(device)]
    words = [f"{word}={getattr(device, name)}" for name, word in options.items()]
    words += [f"kvar={KVAR}"] if kind == "pvsystem" else [f"kw={KW} kvar={KVAR}"]
    if getattr(device, "zipv", None):
        words.append(f"zipv={list(device.zipv)}")
    context = dss.DSS.NewContext()
    text, circuit = context.Text, context.ActiveCircuit
    out = []
    for pu in ENGINE_VOLTS:
        text.Command = "clear"
        text.Command = f"new circuit.c basekv=1 phases=1 pu={pu} r1=0 x1=1e-9 r0=0 x0=1e-9 bus1=sourcebus.1"
        text.Command = f"new {kind}.d bus1=sourcebus.1 phases=1 kv=1 model={device.model} {more}{' '.join(words)}"
        text.Command = "set voltagebases=[1.7320508]"
        text.Command = "calcvoltagebases"
        text.Command = "set controlmode=off tolerance=1e-10 maxiterations=1000"
        text.Command = "solve"
        circuit.SetActiveElement(f"{kind}.d")
        element = circuit.ActiveCktElement
        out.append([np.array(a).view(complex)[0] / 1e3 for a in (element.Voltages, element.Currents)])
    v, i = np.array(out).T
    np.testing.assert_allclose(np.abs(v), ENGINE_VOLTS, atol=1e-6)
    return v, i


@pytest.mark.parametrize("device", LOADS + GENERATORS, ids=label)
def test_devices_draw_what_opendss_says(device):
    v, expected = engine(device)
    found = amps(device, v)
    if not isinstance(device, Load):
        found = -found
    np.testing.assert_allclose(found, expected, rtol=2e-12, atol=1e-14)


@pytest.mark.parametrize(("p", "q"), [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("device", LOADS, ids=label)
def test_real_and_imaginary_power_have_their_own_law(device, p, q):
    """The shares of P and Q are those of the whole: nothing of one leaks into the other."""
    u = np.linspace(0.05, 1.4, 28) * np.exp(0.3j)
    power = u * np.conj(amps(device, u, p, q))
    np.testing.assert_allclose(power.imag if p else power.real, 0.0, atol=1e-17)
    both = u * np.conj(amps(device, u, 3 * p, 3 * q))
    np.testing.assert_allclose(both, 3 * power, rtol=1e-14, atol=1e-17)


def side_by_side(device, kink):
    """Complex power just below and just above a magnitude."""
    u = kink * (1 + np.array([-1.0, 1.0]) * 1e-9) * np.exp(0.7j)
    return u * np.conj(amps(device, u))


CONTINUOUS = [d for d in LOADS if d.model in (1, 2, 5) and d.vlow_pu < d.vmin_pu] + GENERATORS
CONTINUOUS += [load(8, zipv=(0.3, 0.3, 0.4, 0.2, 0.3, 0.5, cutoff), **limits)
               for cutoff in (0.0, 0.1) for limits in LIMITS[:2]]  # fmt: skip
CONTINUOUS += [load(4, cvr_watts=0.0, cvr_vars=0.0, **limits) for limits in LIMITS]


@pytest.mark.parametrize("device", CONTINUOUS, ids=label)
def test_laws_are_continuous_at_their_limits(device):
    for kink in {device.vmin_pu, device.vmax_pu, getattr(device, "vlow_pu", device.vmin_pu)} - {0.0}:
        below, above = side_by_side(device, kink)
        # The straight line from vlow to vmin is steep where they are close together.
        assert abs(above - below) < 2e-7 * abs(above), kink


@pytest.mark.parametrize("limits", LIMITS)
def test_models_3_and_4_jump_only_where_the_engine_does(limits):
    """Outside its band such a load has the impedance of constant power: Q of model 3 jumps by v^2, like model 4."""
    three, four = load(3, **limits), load(4, cvr_watts=0.8, cvr_vars=3.0, **limits)
    for kink in {three.vmin_pu, three.vmax_pu}:
        inside = {3: KW + 1j * KVAR * kink**2, 4: KW * kink**0.8 + 1j * KVAR * kink**3}
        for device in (three, four):
            both = side_by_side(device, kink) * 1e3
            within, outside = both if kink == three.vmax_pu else both[::-1]
            np.testing.assert_allclose(within, inside[device.model], rtol=1e-7)
            np.testing.assert_allclose(outside, KW + 1j * KVAR, rtol=1e-7)
        if three.vlow_pu:
            below, above = side_by_side(four, three.vlow_pu)
            np.testing.assert_allclose(below, above, rtol=1e-7)


def test_below_vlow_a_load_is_its_nominal_impedance():
    u = np.array([0.0, 1e-5, 0.01, 0.2, 0.499])
    for model in range(1, 6):
        np.testing.assert_allclose(amps(load(model), u), (KW - 1j * KVAR) / 1e3 * u, rtol=1e-14)


def test_constant_impedance_units_never_change():
    """Capacitor steps: from nothing to ten times the rating."""
    laws = Laws(**{k: jnp.asarray([v]) for k, v in IMPEDANCE.items()})
    v2 = np.array([0.0, 1e-12, 0.3, 1.0, 100.0])
    for exponents, cutoffs in itertools.product((False, True), repeat=2):
        for f in factors(laws, v2, exponents, cutoffs):
            np.testing.assert_allclose(f, 1.0, rtol=1e-15)


@pytest.mark.parametrize("model", [1, 2, 3, 5, 6, 7])
def test_unused_terms_can_be_left_out(model):
    laws = jax.tree.map(lambda a: a[None], law_of(load(model)))
    full = factors(laws, VOLTS**2, True, True)
    assert all(np.array_equal(a, b) for a, b in zip(factors(laws, VOLTS**2, False, False), full, strict=True))


def draw(laws, u):
    """Real and imaginary volts to real and imaginary amperes, of one unit."""
    fp, fq = factors(laws, u[0] ** 2 + u[1] ** 2, True, True)
    i = (KW * fp - 1j * KVAR * fq) / 1e3 * (u[0] + 1j * u[1])
    return jnp.stack([i.real, i.imag])


many = jax.jit(jax.vmap(draw, in_axes=(None, 0)))
reverse = jax.jit(jax.vmap(jax.jacrev(draw, argnums=1), in_axes=(None, 0)))
forward = jax.jit(jax.vmap(jax.jacfwd(draw, argnums=1), in_axes=(None, 0)))


@pytest.mark.parametrize("device", LOADS + GENERATORS, ids=label)
def test_derivatives_are_finite_and_right(device):
    """Finite at every voltage, nought and the kinks included; equal to central differences off the kinks."""
    laws = law_of(device)
    kinks = np.array([0.0, 1e-3, device.vmin_pu, device.vmax_pu, getattr(device, "vlow_pu", 1.0)])
    u = np.concatenate([VOLTS, kinks]) * np.exp(0.4j)
    points = np.stack([u.real, u.imag], axis=1)
    slopes = reverse(laws, points)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(forward(laws, points), slopes, rtol=1e-12, atol=1e-14)
    smooth, h = points[: len(VOLTS)][VOLTS >= 0.003], 1e-6
    for axis in range(2):
        step = np.eye(2)[axis] * h
        differences = (many(laws, smooth + step) - many(laws, smooth - step)) / (2 * h)
        np.testing.assert_allclose(forward(laws, smooth)[:, :, axis], differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("part", ["power_p", "slope_q", "exponent_p", "vmin"])
def test_derivatives_with_respect_to_coefficients_are_finite(part):
    laws = jax.tree.map(lambda a: a[None], law_of(load(4)))

    def total(x):
        fp, fq = factors(laws.replace(**{part: x}), VOLTS**2, True, True)
        return jnp.sum(fp + fq)

    assert np.isfinite(jax.grad(total)(getattr(laws, part))).all()
