//! Emission schedule of ALICE: a pure integer function of the epoch number (docs/spec/emission.md).
//!
//! `C(n)` is the maximum that may be issued for all epochs before `n`; the budget of epoch `n` is `C(n+1) − C(n)`. The
//! total of an era is therefore exact, and budgets within an era differ by at most one planck.
//!
//! ```
//! use alice_primitives::emission::{EPOCHS_PER_ERA, UNIT, budget, cumulative, share};
//!
//! // Epoch 0: about 599.3 ALICE, halved after two years.
//! assert_eq!(budget(0), 599_315_068_493_150);
//! assert_eq!(cumulative(EPOCHS_PER_ERA), 10_500_000 * UNIT);
//! assert_eq!(budget(EPOCHS_PER_ERA), 299_657_534_246_575);
//! // A contribution with a quarter of the score earns a quarter of the budget, rounded down.
//! assert_eq!(share(budget(0), 1, 4), 149_828_767_123_287);
//! ```

/// One ALICE in planck.
pub const UNIT: u128 = 1_000_000_000_000;
/// Upper bound of the schedule, planck.
pub const CAP: u128 = 21_000_000 * UNIT;
/// Epochs in an era: two years of one-hour epochs (600 blocks of 6 s).
pub const EPOCHS_PER_ERA: u32 = 17_520;
/// Budget of the first era, planck.
pub const ERA_BUDGET_FIRST: u128 = 10_500_000 * UNIT;
/// Sum of all budgets, planck: the cap less the loss of halving to rounding, one planck for every set bit of
/// [`ERA_BUDGET_FIRST`].
pub const TOTAL: u128 = CAP - ERA_BUDGET_FIRST.count_ones() as u128;

/// Era of an epoch: the number of halvings before it.
pub const fn era(epoch: u32) -> u32 {
    epoch / EPOCHS_PER_ERA
}

/// Budget of era `era`, planck: `E_0 >> era`.
pub const fn era_budget(era: u32) -> u128 {
    if era >= u128::BITS { 0 } else { ERA_BUDGET_FIRST >> era }
}

/// `C(n)`: sum of the budgets of all epochs before `epoch`, planck.
pub const fn cumulative(epoch: u32) -> u128 {
    let era = era(epoch);
    let position = (epoch % EPOCHS_PER_ERA) as u128;
    // Eras from 64 on have no budget: the first one's has 64 bits. The bound keeps the loop short for any
    // epoch, because the runtime charges a constant weight.
    let mut sum = 0;
    let mut i = 0;
    while i < era && i < 64 {
        sum += era_budget(i);
        i += 1;
    }
    sum + era_budget(era) * position / EPOCHS_PER_ERA as u128
}

/// Budget of epoch `epoch`, planck: `C(n+1) − C(n)`.
pub const fn budget(epoch: u32) -> u128 {
    match epoch.checked_add(1) {
        Some(next) => cumulative(next) - cumulative(epoch),
        None => 0,
    }
}

/// Share of a budget, planck: `⌊budget · score / total⌋`; zero if `total` is zero or smaller than `score`.
///
/// Never overflows for budgets of this schedule: `budget < 2^50` and `score < 2^64`. A larger budget saturates to
/// zero rather than to a wrong amount.
pub const fn share(budget: u128, score: u64, total: u128) -> u128 {
    if total == 0 || score as u128 > total {
        return 0;
    }
    // The product first: dividing first would lose up to `score` planck.
    match budget.checked_mul(score as u128) {
        Some(product) => product / total,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schedule_should_issue_the_total_over_all_epochs() {
        // Exhaustive: every epoch until the last planck.
        let (mut sum, mut era_sum) = (0u128, 0u128);
        for n in 0..64 * EPOCHS_PER_ERA {
            assert_eq!(cumulative(n), sum, "epoch {n}");
            let b = budget(n);
            let floor = era_budget(era(n)) / EPOCHS_PER_ERA as u128;
            assert!(b == floor || b == floor + 1, "epoch {n}: budget {b}");
            sum += b;
            era_sum += b;
            if (n + 1) % EPOCHS_PER_ERA == 0 {
                assert_eq!(era_sum, era_budget(era(n)));
                era_sum = 0;
            }
        }
        assert_eq!(sum, TOTAL);
        assert_eq!(TOTAL, CAP - 29);
        assert_eq!(budget(64 * EPOCHS_PER_ERA), 0);
        assert_eq!(budget(u32::MAX), 0);
        assert_eq!(budget(0), 599_315_068_493_150);
    }

    proptest! {
        #[test]
        fn shares_should_never_exceed_the_budget(
            epoch in 0u32..10 * EPOCHS_PER_ERA,
            scores in proptest::collection::vec(any::<u64>(), 1..200),
        ) {
            let total: u128 = scores.iter().map(|s| *s as u128).sum();
            let budget = budget(epoch);
            let paid: u128 = scores.iter().map(|s| share(budget, *s, total)).sum();
            prop_assert!(paid <= budget);
            prop_assert!(total == 0 || budget - paid < scores.len() as u128);
        }
    }
}
