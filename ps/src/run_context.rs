//! Network and run: what is fixed while the server runs. Shared with auditors, who know no more than this.

pub use alice_audit::run_context::{RunContext, read_spec};
