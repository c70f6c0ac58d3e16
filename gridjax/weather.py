"""Sun, clouds and wind: irradiance and speeds at sites, day by day, from a key.

The sun. Day n (1 to 365), solar hour t, latitude phi (Cooper, 1969; Haurwitz, 1945, kW/m2 on the horizontal):

    delta = 23.45 sin(2 pi (284 + n)/365),    cos z = sin phi sin delta + cos phi cos delta cos(15 (t - 12))
    G = 1.098 cos z exp(-0.057 / cos z)  while the sun is up.

Clouds. A day has a cover C = Phi(m + w cos(2 pi (n - 15)/365) + s g_n), where g_n is a chain of N(0, 1) from day to day
(s > 1 makes days clear or overcast rather than between: Falls, "The beta distribution: a statistical model for world
cloud cover", J. Geophys. Res. 79, 1974). A site is in shade while its variation z (see `gridjax.variation`) is under a
level u, with edges of width e, and shade leaves a quarter:

    k = 1 - 0.75 Phi((u - z)/e),    Phi(u / sqrt(1 + e^2)) = C^3.4

so that the mean over time is k = 1 - 0.75 C^3.4, the measured one (Kasten and Czeplak, "Solar and terrestrial radiation
dependent on the amount and type of cloud", Solar Energy 24, 1980). Shades come 1/(2 pi tau) exp(-u^2/2) times an hour,
and at two sites together the more the nearer they are: clouds that last tau and drift at a speed V reach over V tau / 2
(Lave and Kleissl, "Cloud speed impact on solar variability scaling", Solar Energy 91, 2013).

Wind. The speed at a hub is Weibull (Justus, Hargraves and Yalcin, "Nationwide assessment of potential output from
wind-powered generators", J. Appl. Meteorology 15, 1976) of a Gaussian variation z that goes on from day to day (Brown,
Katz and Murphy, "Time series models to simulate and forecast wind speed and wind power", J. Climate and Applied
Meteorology 23, 1984), with a scale that is higher in winter:

    v = c_n (-ln(1 - Phi(z)))^(1/k),     c_n = c (1 + w cos(2 pi (n - 15)/365)),     mean c Gamma(1 + 1/k)
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr, ndtri

from gridjax.variation import Factors, midnight, vary

YEAR = 365
LOWEST_SUN = 1e-3  # of cos z; below it the sun is down
SHADE = 0.75  # what an overcast sky keeps off
COVER_EXPONENT = 3.4
EXTREME = 1e-6  # shares of shade are kept this far from 0 and 1, where the level would be infinite


@flax.struct.dataclass
class Sky:
    """Sun and clouds over the sites.

    Attributes:
      latitude_deg: north is positive.
      noon_hour: clock time of the sun's highest stand.
      cover: m, sets the mean cover.
      winter: w, how much more is covered in winter.
      spread: s, of the days' cover.
      memory: correlation of the cover from one day to the next.
      edge: e, width of the clouds' edges.
      clouds: the sites' variation, smooth.
    """

    latitude_deg: jax.Array
    noon_hour: jax.Array
    cover: jax.Array
    winter: jax.Array
    spread: jax.Array
    memory: jax.Array
    edge: jax.Array
    clouds: Factors


@flax.struct.dataclass
class Wind:
    """Wind at the sites.

    Attributes:
      scale_m_s, shape: Weibull's c and k.
      winter: how much stronger in the middle of winter, a share.
      cut_in_m_s, rated_m_s, cut_out_m_s: of the turbines.
      gusts: the sites' variation, rough.
    """

    scale_m_s: jax.Array
    shape: jax.Array
    winter: jax.Array
    cut_in_m_s: jax.Array
    rated_m_s: jax.Array
    cut_out_m_s: jax.Array
    gusts: Factors


def sky(
    clouds: Factors,
    *,
    latitude_deg: float = 40.0,
    noon_hour: float = 12.0,
    cover: float = 0.0,
    winter: float = 0.3,
    spread: float = 1.3,
    memory: float = 0.3,
    edge: float = 0.2,
) -> Sky:
    """A sky from plain numbers (see `Sky`); the defaults stand for a temperate climate, half covered over the year.

    Raises:
      ValueError: a number makes no sense.
    """
    if abs(latitude_deg) > 90:
        raise ValueError(f"latitude_deg {latitude_deg:g} is outside -90 to 90")
    if not 0 <= memory <= 0.7 or edge <= 0 or spread < 0:
        raise ValueError("a sky needs memory within 0 to 0.7, edge above 0 and spread of at least 0")
    numbers = (latitude_deg, noon_hour, cover, winter, spread, memory, edge)
    return Sky(*(jnp.asarray(float(x)) for x in numbers), clouds=clouds)


def wind(
    gusts: Factors,
    *,
    scale_m_s: float = 7.0,
    shape: float = 2.0,
    winter: float = 0.15,
    cut_in_m_s: float = 3.0,
    rated_m_s: float = 12.0,
    cut_out_m_s: float = 25.0,
) -> Wind:
    """Wind from plain numbers (see `Wind`); shape 2 is Rayleigh's distribution, as in IEC 61400-1.

    Raises:
      ValueError: a number makes no sense.
    """
    if scale_m_s <= 0 or shape <= 0 or not -1 < winter < 1:
        raise ValueError("wind needs scale_m_s and shape above 0 and winter within -1 to 1")
    if not 0 <= cut_in_m_s < rated_m_s < cut_out_m_s:
        raise ValueError("a turbine needs 0 <= cut_in_m_s < rated_m_s < cut_out_m_s")
    numbers = (scale_m_s, shape, winter, cut_in_m_s, rated_m_s, cut_out_m_s)
    return Wind(*(jnp.asarray(float(x)) for x in numbers), gusts=gusts)


def clear_sky(
    day: jax.Array | int,
    hour: jax.Array | float,
    latitude_deg: jax.Array | float = 40.0,
    noon_hour: jax.Array | float = 12.0,
) -> jax.Array:
    """Irradiance on the horizontal without clouds, kW/m2.

    Args:
      day: of the year, 1 to 365.
      hour: of the day, clock time.
      latitude_deg: north is positive.
      noon_hour: clock time of the sun's highest stand.
    """
    declination = jnp.deg2rad(23.45) * jnp.sin(2 * jnp.pi * (284 + day) / YEAR)
    latitude, angle = jnp.deg2rad(latitude_deg), jnp.deg2rad(15.0 * (hour - noon_hour))
    height = jnp.sin(latitude) * jnp.sin(declination)
    height = height + jnp.cos(latitude) * jnp.cos(declination) * jnp.cos(angle)
    up = jnp.maximum(height, LOWEST_SUN)
    return jnp.where(height > LOWEST_SUN, 1.098 * up * jnp.exp(-0.057 / up), 0.0)


def winter_wave(day: jax.Array | int) -> jax.Array:
    """1 in the middle of the northern winter, -1 in the middle of its summer."""
    return jnp.cos(2 * jnp.pi * (day - 15) / YEAR)


def cloud_cover(key: jax.Array, sky: Sky, day: jax.Array | int) -> jax.Array:
    """The day's cloud cover, 0 to 1; day 0 is January 1st."""
    level = midnight(key, day, sky.memory[None])[0]
    return ndtr(sky.cover + sky.winter * winter_wave(1 + jnp.asarray(day) % YEAR) + sky.spread * level)


def shade_level(sky: Sky, cover: jax.Array) -> jax.Array:
    """The level u that a site's variation is under while it is in shade."""
    share = jnp.clip(cover**COVER_EXPONENT, EXTREME, 1 - EXTREME)
    return jnp.sqrt(1 + sky.edge**2) * ndtri(share)


def clearness(key: jax.Array, sky: Sky, day: jax.Array | int, steps: int) -> jax.Array:
    """What the clouds leave of the clear sky's irradiance at each site, (steps, sites), 0.25 to 1."""
    day_key, cloud_key = jax.random.split(key)
    z = vary(cloud_key, sky.clouds, day, steps, smooth=True)
    return through_clouds(sky, cloud_cover(day_key, sky, day), z)


def through_clouds(sky: Sky, cover: jax.Array, z: jax.Array) -> jax.Array:
    """What clouds of a given cover leave where the variation is z."""
    return 1 - SHADE * ndtr((shade_level(sky, cover) - z) / sky.edge)


def irradiance(key: jax.Array, sky: Sky, day: jax.Array | int, steps: int) -> jax.Array:
    """Irradiance at each site in the middle of each step of a day, (steps, sites), kW/m2; day 0 is January 1st."""
    hour = hours_of_day(steps)
    clear = clear_sky(1 + jnp.asarray(day) % YEAR, hour, sky.latitude_deg, sky.noon_hour)
    return clear[:, None] * clearness(key, sky, day, steps)


def wind_speed(key: jax.Array, wind: Wind, day: jax.Array | int, steps: int) -> jax.Array:
    """Wind speed at each site in the middle of each step of a day, (steps, sites), m/s; day 0 is January 1st."""
    z = vary(key, wind.gusts, day, steps)
    scale = wind.scale_m_s * (1 + wind.winter * winter_wave(1 + jnp.asarray(day) % YEAR))
    return scale * (-log_ndtr(-z)) ** (1 / wind.shape)


def turbine_power(wind: Wind, speed_m_s: jax.Array) -> jax.Array:
    """Power in per unit of the rating: cubic from cut-in to rated speed, then 1 up to cut-out."""
    cube = (speed_m_s**3 - wind.cut_in_m_s**3) / (wind.rated_m_s**3 - wind.cut_in_m_s**3)
    return jnp.where(speed_m_s > wind.cut_out_m_s, 0.0, jnp.clip(cube, 0.0, 1.0))


def hours_of_day(steps: int) -> jax.Array:
    """The middle of each step of a day, hours."""
    return (jnp.arange(steps) + 0.5) * (24.0 / steps)
