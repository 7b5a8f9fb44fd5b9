//! One task, from its lease to the committed update.
//!
//! [`pinned_network`] and [`run`] are what a data directory belongs to. [`weights`], [`corpus`] and [`tokenizer`] fetch
//! the inputs of a task, [`work`] trains and encodes it, [`residual`] and [`moments`] are kept from task to task,
//! [`send`] brings the update to the server. [`journal`] names the step that is missing after any crash.

pub mod corpus;
pub mod journal;
pub mod moments;
pub mod pinned_network;
pub mod residual;
pub mod run;
pub mod send;
pub mod tokenizer;
pub mod weights;
pub mod work;
