"""hfopt: Hessian-free (truncated Newton) training for JAX, as an Optax gradient transformation."""

from hfopt import presets
from hfopt.analysis import checks, critical_points, spectra
from hfopt.analysis.checks import check
from hfopt.analysis.report import Report
from hfopt.control.calibration import Calibrated as calibrated_damping
from hfopt.control.damping import ByTrust as trust_damping
from hfopt.control.damping import Constant as constant_damping
from hfopt.control.damping import LevenbergMarquardt as levenberg_marquardt
from hfopt.control.damping import Scheduled as scheduled_damping
from hfopt.control.line_search import Armijo as armijo
from hfopt.control.line_search import FixedStep as fixed_step
from hfopt.control.line_search import FullStep as full_step
from hfopt.control.trust_region import Earned as earned_trust
from hfopt.control.trust_region import Scheduled as scheduled_trust
from hfopt.curvature import (
    Estimate,
    Jacobian,
    Operator,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    jacobian,
    outer_product,
    penalty_hessian,
    residual_hessian,
)
from hfopt.objective import Objective, ValueFn
from hfopt.solve.cg import CGResult
from hfopt.solve.cg import ConjugateGradient as cg
from hfopt.solve.kronecker import Kronecker as kronecker
from hfopt.solve.metrics import SecondMoment as second_moment
from hfopt.solve.nystrom import Nystrom as nystrom
from hfopt.solve.preconditioners import Jacobi as jacobi
from hfopt.solve.preconditioners import SquaredGradients as squared_gradients
from hfopt.solve.stopping import RelativeProgress as relative_progress
from hfopt.solve.stopping import RelativeResidual as relative_residual
from hfopt.solve.stopping import Stop
from hfopt.solve.structural import Structural as structural
from hfopt.state import DirectionInfo, GaussNewtonState, HessianFreeState, StepInfo
from hfopt.transform import hessian_free, scale_by_gauss_newton
from hfopt.wrappers import masked

__version__ = "0.1.0"

__all__ = [
    "CGResult",
    "DirectionInfo",
    "Estimate",
    "GaussNewtonState",
    "HessianFreeState",
    "Jacobian",
    "Objective",
    "Operator",
    "Report",
    "StepInfo",
    "Stop",
    "ValueFn",
    "armijo",
    "calibrated_damping",
    "cg",
    "check",
    "checks",
    "constant_damping",
    "critical_points",
    "earned_trust",
    "empirical_fisher",
    "fisher",
    "fixed_step",
    "full_step",
    "gauss_newton",
    "hessian",
    "hessian_free",
    "jacobi",
    "jacobian",
    "kronecker",
    "levenberg_marquardt",
    "masked",
    "nystrom",
    "outer_product",
    "penalty_hessian",
    "presets",
    "relative_progress",
    "relative_residual",
    "residual_hessian",
    "scale_by_gauss_newton",
    "scheduled_damping",
    "scheduled_trust",
    "second_moment",
    "spectra",
    "squared_gradients",
    "structural",
    "trust_damping",
]
