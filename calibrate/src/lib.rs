//! Foresight text, calibration metrics, recalibration maps, gates; pure: no clock, no files, no model.
//!
//! | module | holds |
//! |---|---|
//! | [`foresight`] | the one grammar of foresight text: parse, render, byte ranges of its spans |
//! | [`stated`] | what a policy wrote about its own success, and the distribution behind it |
//! | [`metrics`] | how well stated probabilities and outcomes agree, with intervals |
//! | [`fidelity`] | how true rollouts are by horizon, and how much of that a candidate keeps |
//! | [`divergence`] | how far two policies' next tokens are apart |
//! | [`shift`] | how far their stated probabilities are apart |
//! | [`recalibration`] | maps from stated to estimate; the only maker of an [`Estimate`] |
//! | [`threshold`] | the estimate from which on to act, so that failures stay bounded |
//! | [`stored`] | the same as a file carries it |
//! | [`gates`] | paired judgement of a candidate against a reference; the only maker of [`gates::Passed`] |
//! | [`crossed`] | intervals where training seeds and instances both are chance |
//! | [`intervals`] | intervals for proportions, means and paired differences |
//! | [`drift`] | whether probabilities still mean what they meant: audit, detector, refit and promotion |
//! | [`alarms`] | signs that training is destroying the foresight it should calibrate |
//!
//! Everything here is a function of its arguments: nothing reads a clock, a file or a policy, and
//! every random draw comes from a seed the caller gives.

#![forbid(unsafe_code)]

pub mod alarms;
pub mod crossed;
pub mod divergence;
pub mod drift;
pub mod fidelity;
pub mod foresight;
pub mod gates;
pub mod intervals;
pub mod metrics;
pub mod recalibration;
pub mod shift;
pub mod stated;
pub mod stored;
pub mod threshold;

pub use recalibration::Estimate;
pub use stated::{Stated, StatedDistribution};
