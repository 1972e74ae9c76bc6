//! Tests of fsq-calibrate: known values, properties, recorded values of other libraries, simulation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod alarms;
mod divergence;
mod fixture;
mod foresight;
mod gates;
mod metrics;
mod recalibration;
mod simulation;
mod stated;
