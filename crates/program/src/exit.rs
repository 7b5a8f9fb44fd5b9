//! Exit codes. A service manager or a script decides by them whether another start can help.

/// Something failed that another try may mend: disk, database, device, a server that does not answer.
pub const FAILURE: u8 = 1;
/// Wrong flags, settings, key file or specification. clap ends with the same code for wrong flags.
pub const USAGE: u8 = 2;
/// Data directory, chain, run and corpus do not belong together.
pub const MISMATCH: u8 = 3;
/// The chain cannot be reached, or its answer cannot be used.
pub const CHAIN: u8 = 4;
/// Published data differ from what was recomputed from them.
pub const AUDIT: u8 = 5;
/// A second SIGINT or SIGTERM: 128 + SIGINT, as shells expect.
pub const INTERRUPTED: u8 = 130;
