//! Foresight text, calibration metrics, recalibration maps, gates; pure: no clock, no files, no model.
//!
//! | module | holds |
//! |---|---|
//! | [`foresight`] | the one grammar of foresight text: parse, render, byte ranges of its spans |
//! | [`stated`] | what a policy wrote about its own success, and the distribution behind it |
//! | [`metrics`] | how well stated probabilities and outcomes agree, with intervals |
//! | [`divergence`] | how far two policies' next tokens are apart |
//! | [`shift`] | how far their stated probabilities are apart |
//! | [`recalibration`] | maps from stated to estimate; the only maker of an [`Estimate`] |
//! | [`gates`] | paired judgement of a candidate against a reference; the only maker of [`gates::Passed`] |
//! | [`intervals`] | intervals for proportions, means and paired differences |
//! | [`alarms`] | signs that training is destroying the foresight it should calibrate |
//!
//! Everything here is a function of its arguments: nothing reads a clock, a file or a policy, and
//! every random draw comes from a seed the caller gives.

#![forbid(unsafe_code)]

pub mod alarms;
pub mod divergence;
pub mod foresight;
pub mod gates;
pub mod intervals;
pub mod metrics;
pub mod recalibration;
pub mod shift;
pub mod stated;

pub use recalibration::Estimate;
pub use stated::{Stated, StatedDistribution};
