//! Tests of fsq-calibrate: known values, properties, recorded values of other libraries, simulation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod agreement;
mod alarms;
mod coverage;
mod divergence;
mod drift;
mod drifting;
mod fixture;
mod foresight;
mod gates;
mod known;
mod metrics;
mod recalibration;
mod rollouts;
mod simulated;
mod simulation;
mod stated;
mod threshold;
