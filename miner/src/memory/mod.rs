//! Devices and their memory: which device trains ([`device`]), which options make a task fit it ([`fit`]), and the
//! command that shows both without mining ([`plan`]).

pub mod device;
pub mod fit;
pub mod plan;
