//! TODO-header

pub mod device;
pub mod fit;
pub mod plan;
