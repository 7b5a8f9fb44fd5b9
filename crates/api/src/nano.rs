//! Losses on the wire: integers in nano-nats per token, so that every reader has the same number.

/// A loss or a difference of losses, nats per token, in nano-nats, rounded to the nearest.
///
/// Values beyond the range saturate (+∞ is `i64::MAX`, −∞ is `i64::MIN`), and NaN becomes 0: JSON has none of them.
///
/// ```
/// assert_eq!(alice_api::nano_nats(-0.004), -4_000_000);
/// ```
pub fn nano_nats(nats: f64) -> i64 {
    // A cast from f64 saturates, and takes NaN to 0.
    (nats * 1e9).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nano_nats_should_round_and_saturate() {
        assert_eq!(nano_nats(1.25e-9), 1);
        assert_eq!(nano_nats(-0.004), -4_000_000);
        assert_eq!(nano_nats(f64::INFINITY), i64::MAX);
        assert_eq!(nano_nats(f64::NEG_INFINITY), i64::MIN);
        assert_eq!(nano_nats(f64::NAN), 0);
    }
}
