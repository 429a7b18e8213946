"""Walker2D with random dynamics."""

import numpy as np

from sb3_trmrl.envs.mujoco.base import PhysicsState
from sb3_trmrl.envs.mujoco.rand_params import RandParams


class Walker2DRandParams(RandParams):
    """
    Walk forward with masses, inertias, frictions and dampings that are not told.

    | obs | content | unit |
    |---|---|---|
    | 0-7 | height, pitch, six joint angles | m, rad |
    | 8-16 | velocities of x, z, pitch, six joints, clipped to +-10 | m/s, rad/s |

    Action: six torques in [-1, 1]. Tasks, reward, reset: :class:`~sb3_trmrl.envs.mujoco.rand_params.RandParams`.

    Terminates if the height is outside (0.8, 2.0) m, if |pitch| >= 1 rad, or if the simulation blows up.

    Source: ``rand_param_envs``, in PEARL (Rakelly et al. 2019) and VariBAD; the OOD split is ours.
    """

    xml_file = "walker2d.xml"

    def terminations(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.terminations`."""
        height, pitch = state.qpos[:, 1], state.qpos[:, 2]
        fallen: np.ndarray = (height <= 0.8) | (height >= 2.0) | (np.abs(pitch) >= 1.0)
        return fallen
