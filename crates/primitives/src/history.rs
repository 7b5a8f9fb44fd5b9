//! History of the chain's state: how long the records of an epoch are kept, and how they are removed.

/// Epochs for which the chain keeps commitments, ledgers and issuance counters: 30 days of one-hour epochs. One
/// constant for all pallets, because a ledger must never outlive the counter that limits what it can issue.
pub const HISTORY_EPOCHS: u32 = 720;

/// Removes the records of epochs older than [`HISTORY_EPOCHS`], oldest first and at most `per_call` of them.
///
/// `pruned_before` is the first epoch that may still have records. `remove` deletes the records of one epoch, or
/// returns false if it cannot afford to. Returns the new `pruned_before`; `None` if nothing was removed.
pub fn prune(
    pruned_before: u32,
    current_epoch: u32,
    per_call: u32,
    mut remove: impl FnMut(u32) -> bool,
) -> Option<u32> {
    let keep_from = current_epoch.saturating_sub(HISTORY_EPOCHS);
    let end = keep_from.min(pruned_before.saturating_add(per_call));
    let removed = (pruned_before..end).take_while(|epoch| remove(*epoch)).count();
    (removed > 0).then(|| pruned_before.saturating_add(removed as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    fn run(pruned_before: u32, current: u32, affordable: usize) -> (Option<u32>, Vec<u32>) {
        let mut removed = vec![];
        let bound = prune(pruned_before, current, 8, |epoch| {
            let afford = removed.len() < affordable;
            if afford {
                removed.push(epoch);
            }
            afford
        });
        (bound, removed)
    }

    #[test]
    fn prune_should_remove_only_what_is_older_than_the_history() {
        assert_eq!(run(0, HISTORY_EPOCHS, 99), (None, vec![]));
        assert_eq!(run(0, HISTORY_EPOCHS + 2, 99), (Some(2), vec![0, 1]));
        assert_eq!(run(2, HISTORY_EPOCHS + 2, 99), (None, vec![]));
    }

    #[test]
    fn prune_should_stop_at_its_limits() {
        assert_eq!(run(5, HISTORY_EPOCHS + 100, 99), (Some(13), (5..13).collect()));
        assert_eq!(run(5, HISTORY_EPOCHS + 100, 3), (Some(8), vec![5, 6, 7]));
        assert_eq!(run(5, HISTORY_EPOCHS + 100, 0), (None, vec![]));
        assert_eq!(run(u32::MAX, u32::MAX, 99), (None, vec![]));
    }
}
