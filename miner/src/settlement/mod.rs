//! TODO-header

pub mod pages;
pub mod payout;
pub mod receipts;
pub mod verdicts;
