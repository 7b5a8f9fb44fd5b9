//! Settlement of scored rounds: follow the chain, attest in epoch order, pay, forget.

use crate::{ChainStatus, Effect, Rules, State};

/// Blocks after which an attestation or the payout pages are sent again if the chain does not show them: the
/// transaction may have been lost with a node that went down.
const RESEND_BLOCKS: u32 = 3;

/// Stage of a settlement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SettlementStage {
    /// Not accepted by the chain.
    #[default]
    Unattested,
    /// Accepted, in its dispute window.
    Accepted,
    /// Being paid.
    Paying,
}

/// A scored round on its way to the miners' balances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Stage.
    pub stage: SettlementStage,
    /// Best block when the chain was last asked.
    pub asked_at: Option<u32>,
    /// Best block when something was last sent in this stage.
    pub sent_at: Option<u32>,
    /// Whether the signed commitment can no longer be accepted. Later epochs do not wait for it, and it is not sent
    /// again.
    pub lost: bool,
}

/// Asks about every settlement whose epoch is over, once for each block.
pub(crate) fn follow(state: &mut State, rules: &Rules, effects: &mut Vec<Effect>) {
    let best = state.best;
    for (&epoch, settlement) in &mut state.settlements {
        let over = best >= rules.epoch_start(epoch.saturating_add(1));
        if over && settlement.asked_at != Some(best) {
            settlement.asked_at = Some(best);
            effects.push(Effect::Follow { epoch });
        }
    }
}

/// Handles the chain's answer about an epoch.
pub(crate) fn answer(state: &mut State, epoch: u32, status: ChainStatus, rules: &Rules, effects: &mut Vec<Effect>) {
    let best = state.best;
    // A commitment names its predecessor, so it is signed only when no veto can replace that any more.
    let is_first = state
        .settlements
        .range(..epoch)
        .all(|(_, earlier)| earlier.stage == SettlementStage::Paying || earlier.lost);
    let Some(settlement) = state.settlements.get_mut(&epoch) else {
        return;
    };
    let stage = match status {
        ChainStatus::Open => SettlementStage::Unattested,
        ChainStatus::Accepted => SettlementStage::Accepted,
        ChainStatus::Final => SettlementStage::Paying,
        ChainStatus::Settled { .. } | ChainStatus::Forfeited => {
            state.settlements.remove(&epoch);
            effects.push(Effect::Record { epoch, status });
            return;
        }
    };
    if settlement.stage != stage {
        *settlement = Settlement {
            stage,
            asked_at: settlement.asked_at,
            sent_at: None,
            // The chain moved: a reopened epoch is signed anew.
            lost: false,
        };
        effects.push(Effect::Record { epoch, status });
    }
    let due = settlement
        .sent_at
        .is_none_or(|sent| best.saturating_sub(sent) >= RESEND_BLOCKS);
    match stage {
        SettlementStage::Unattested => {
            // After the late window the chain accepts it no more. The settlement stays until the finalised chain
            // reports it forfeited, since a commitment may have been accepted at the last moment.
            if best < rules.attestable_until(epoch) && is_first && due && !settlement.lost {
                settlement.sent_at = Some(best);
                effects.push(Effect::Attest { epoch });
            }
        }
        SettlementStage::Paying if due => {
            settlement.sent_at = Some(best);
            effects.push(Effect::Pay { epoch });
        }
        SettlementStage::Accepted | SettlementStage::Paying => {}
    }
}
