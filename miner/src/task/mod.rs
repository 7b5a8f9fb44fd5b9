//! TODO-header

pub mod corpus;
pub mod journal;
pub mod moments;
pub mod pinned_network;
pub mod residual;
pub mod send;
pub mod tokenizer;
pub mod weights;
pub mod work;
