//! The first state of a run, drawn from block 0 or from a file. Shared with auditors, who make it the same way.

pub use alice_audit::first_state::FirstState;
