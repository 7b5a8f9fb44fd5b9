//! RPC methods that this node adds to those of every Substrate node.

use alice_runtime::{opaque::Block, AccountId, Balance, BlockNumber, Hash, Nonce};
use jsonrpsee::RpcModule;
use sc_client_api::AuxStore;
use sc_consensus_babe::BabeWorkerHandle;
use sc_consensus_grandpa::{FinalityProofProvider, GrandpaJustificationStream, SharedAuthoritySet, SharedVoterState};
use sc_rpc::SubscriptionTaskExecutor;
use sc_transaction_pool_api::TransactionPool;
use sp_api::ProvideRuntimeApi;
use sp_block_builder::BlockBuilder;
use sp_blockchain::{Error as BlockChainError, HeaderBackend, HeaderMetadata};
use sp_consensus::SelectChain;
use sp_consensus_babe::BabeApi;
use sp_keystore::KeystorePtr;
use std::sync::Arc;

/// Dependencies of the GRANDPA methods.
pub struct GrandpaDeps<B> {
    /// State of the current vote.
    pub shared_voter_state: SharedVoterState,
    /// The voters.
    pub shared_authority_set: SharedAuthoritySet<Hash, BlockNumber>,
    /// Justifications as they arrive.
    pub justification_stream: GrandpaJustificationStream<Block>,
    /// Proofs of finality.
    pub finality_provider: Arc<FinalityProofProvider<B, Block>>,
}

/// Dependencies of the methods.
pub struct FullDeps<C, P, SC, B> {
    /// The client.
    pub client: Arc<C>,
    /// The transaction pool.
    pub pool: Arc<P>,
    /// Choice of the best chain.
    pub select_chain: SC,
    /// BABE's worker.
    pub babe_worker: BabeWorkerHandle<Block>,
    /// The node's keys.
    pub keystore: KeystorePtr,
    /// Dependencies of the GRANDPA methods.
    pub grandpa: GrandpaDeps<B>,
    /// Executor of subscriptions.
    pub executor: SubscriptionTaskExecutor,
}

/// Collects the methods.
pub fn create<C, P, SC, B>(
    deps: FullDeps<C, P, SC, B>,
) -> Result<RpcModule<()>, Box<dyn std::error::Error + Send + Sync>>
where
    C: ProvideRuntimeApi<Block>
        + HeaderBackend<Block>
        + AuxStore
        + HeaderMetadata<Block, Error = BlockChainError>
        + Send
        + Sync
        + 'static,
    C::Api: frame_system_rpc_runtime_api::AccountNonceApi<Block, AccountId, Nonce>
        + pallet_transaction_payment_rpc::TransactionPaymentRuntimeApi<Block, Balance>
        + BabeApi<Block>
        + BlockBuilder<Block>,
    P: TransactionPool + 'static,
    SC: SelectChain<Block> + 'static,
    B: sc_client_api::Backend<Block> + Send + Sync + 'static,
{
    use pallet_transaction_payment_rpc::{TransactionPayment, TransactionPaymentApiServer};
    use sc_consensus_babe_rpc::{Babe, BabeApiServer};
    use sc_consensus_grandpa_rpc::{Grandpa, GrandpaApiServer};
    use substrate_frame_rpc_system::{System, SystemApiServer};

    let FullDeps {
        client,
        pool,
        select_chain,
        babe_worker,
        keystore,
        grandpa,
        executor,
    } = deps;
    let mut module = RpcModule::new(());
    module.merge(System::new(client.clone(), pool).into_rpc())?;
    module.merge(TransactionPayment::new(client.clone()).into_rpc())?;
    module.merge(Babe::new(client, babe_worker, keystore, select_chain).into_rpc())?;
    module.merge(
        Grandpa::new(
            executor,
            grandpa.shared_authority_set,
            grandpa.shared_voter_state,
            grandpa.justification_stream,
            grandpa.finality_provider,
        )
        .into_rpc(),
    )?;
    Ok(module)
}
