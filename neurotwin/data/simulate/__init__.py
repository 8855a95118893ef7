"""Demo sessions whose true rate is known: photographs and Gabors, seen through a moving gaze by model V1 units.

The expected count of unit u in bin t is ::

    rate  = (spontaneous + amplitude · drive) · gain · (1 − missing) / bin_rate
    drive = [(1 − complexity) · ⌊E⌋² + complexity · (E² + O²)] / (σ² + P)
    gain  = exp(pupil_gain · pupil + saccade_gain · perisaccadic)

E and O are responses of two space-time Gabor filters in quadrature and `complexity` runs from 0, a simple cell, to 1, a
complex cell (Adelson & Bergen 1985). P is the energy (E² + O²) / 2, averaged between the unit itself and the mean of
all units of the session (divisive normalisation, Heeger 1992). `pupil` is the standardised diameter and `perisaccadic`
the eye speed filtered by a kernel that first suppresses, then enhances. Responses are drawn from a likelihood given the
rate: by default Poisson spike counts.
"""

from .sessions import make_demo_sessions, simulate_linear_session, simulate_session
from .units import BIN_RATE, DEMO_SESSIONS, FRAME_SIZE, PIXELS_PER_DEGREE, PUPIL_MM, Units, draw_units

__all__ = [
    "BIN_RATE",
    "DEMO_SESSIONS",
    "FRAME_SIZE",
    "PIXELS_PER_DEGREE",
    "PUPIL_MM",
    "Units",
    "draw_units",
    "make_demo_sessions",
    "simulate_linear_session",
    "simulate_session",
]
