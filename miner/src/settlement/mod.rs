//! Evidence and pay: everything that happens to an update after it is sent.
//!
//! ```text
//! commit ──▶ receipt ──▶ verdict ──▶ payout page with proof ──▶ paid on the chain
//!            receipts/   receipts/   pages/                     pages/
//! ```
//!
//! **Files.** `receipts/<epoch>-<id>.json` is one submission: the server's signed receipt, its signed verdict, or the
//! refusal ([`receipts`]). `pages/<epoch>-<account>.json` is one epoch's pay for one account: the payout page with its
//! Merkle proof and the state of the pay ([`pages`]). Both kinds are kept for ever: they prove a claim against a server
//! or a chain that denies it.
//!
//! **Recovery.** A file is replaced in one step, and memory follows the disk. Nothing here needs a journal: each state
//! is reached again by asking once more. A lost receipt comes from the server when the same bytes are sent again, a
//! lost verdict with the next poll ([`verdicts`]), a lost page from any server that has the epoch ([`payout`]).
//!
//! **Durable when.** A receipt before the journal forgets the update; a verdict before the residual gives the update's
//! values back or lets go of them; a page before it is pushed. A decision in the other direction ("no verdict will
//! come", "no pay") is stored with its reason, and the chain's word replaces the server's.
//!
//! **Full disk.** A record that cannot be written is an error that the main loop reports and waits out; the next poll
//! asks again.

pub mod lazy_chain;
pub mod pages;
pub mod payout;
pub mod receipts;
pub mod verdicts;
