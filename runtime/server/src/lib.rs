//! The HTTP server: engine, scheduler, foresight and outcomes.
