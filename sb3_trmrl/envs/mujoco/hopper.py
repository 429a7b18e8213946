"""Hopper with random dynamics."""

import numpy as np

from sb3_trmrl.envs.mujoco.base import PhysicsState
from sb3_trmrl.envs.mujoco.rand_params import RandParams


class HopperRandParams(RandParams):
    """
    Hop forward with masses, inertias, frictions and dampings that are not told.

    | obs | content | unit |
    |---|---|---|
    | 0-4 | height, pitch, three joint angles | m, rad |
    | 5-10 | velocities of x, z, pitch, three joints, clipped to +-10 | m/s, rad/s |

    Action: three torques in [-1, 1]. Tasks, reward, reset: :class:`~sb3_trmrl.envs.mujoco.rand_params.RandParams`.

    Terminates if the height is at most 0.7 m, if |pitch| >= 0.2 rad, or if the simulation blows up.

    Source: ``rand_param_envs``, in PEARL (Rakelly et al. 2019) and VariBAD; the OOD split is ours.
    """

    xml_file = "hopper.xml"
    frame_skip = 4  # as in rand_param_envs; the other families have 5

    def terminations(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.terminations`."""
        height, pitch = state.qpos[:, 1], state.qpos[:, 2]
        fallen: np.ndarray = (height <= 0.7) | (np.abs(pitch) >= 0.2)
        return fallen
