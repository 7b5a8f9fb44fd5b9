//! Wires the SDK's parts into a node: client, pool, BABE, GRANDPA, network, RPC.

use crate::{genesis, rpc, session_keys};
use alice_runtime::{opaque::Block, RuntimeApi};
use futures::{FutureExt, StreamExt};
use sc_client_api::{Backend, BlockBackend};
use sc_consensus_babe::{BabeLink, BabeWorkerHandle, SlotProportion};
use sc_consensus_grandpa::{GrandpaPruningFilter, SharedVoterState};
use sc_consensus_slots::BackoffAuthoringOnFinalizedHeadLagging;
use sc_network::{event::Event, NetworkBackend};
use sc_service::{error::Error as ServiceError, Configuration, TaskManager, WarpSyncConfig};
use sc_telemetry::{Telemetry, TelemetryWorker};
use sc_transaction_pool::TransactionPoolHandle;
use sc_transaction_pool_api::OffchainTransactionPoolFactory;
use sp_blockchain::HeaderBackend;
use sp_consensus_babe::inherents::BabeCreateInherentDataProviders;
use sp_runtime::traits::Block as BlockT;
use std::{sync::Arc, time::Duration};

/// Maximum distance between stored justifications of finality, blocks. The SDK's usual value: a justification costs a
/// few kilobytes, and light clients need one within reach.
const JUSTIFICATION_PERIOD: u32 = 512;
/// Expected time for GRANDPA gossip to reach everybody; rounds wait for votes for a multiple of it. The SDK's usual
/// value.
const GOSSIP_DURATION: Duration = Duration::from_millis(333);
/// Portion of a slot in which the block is made; the rest is for its way to the other nodes.
const PROPOSAL_PORTION: f32 = 0.5;

type Executor = sc_executor::WasmExecutor<sp_io::SubstrateHostFunctions>;
/// The node's client.
pub type FullClient = sc_service::TFullClient<Block, RuntimeApi, Executor>;
/// The node's database.
pub type FullBackend = sc_service::TFullBackend<Block>;
type SelectChain = sc_consensus::LongestChain<FullBackend, Block>;
type GrandpaBlockImport = sc_consensus_grandpa::GrandpaBlockImport<FullBackend, Block, FullClient, SelectChain>;
type BlockImport = sc_consensus_babe::BabeBlockImport<
    Block,
    FullClient,
    GrandpaBlockImport,
    BabeCreateInherentDataProviders<Block>,
    SelectChain,
>;

/// Parts of [`new_partial`] for the consensus.
pub struct Consensus {
    block_import: BlockImport,
    grandpa_link: sc_consensus_grandpa::LinkHalf<Block, FullClient, SelectChain>,
    babe_link: BabeLink<Block>,
    babe_worker: BabeWorkerHandle<Block>,
    telemetry: Option<Telemetry>,
}

/// Parts of a node that subcommands need as well.
pub type Partial = sc_service::PartialComponents<
    FullClient,
    FullBackend,
    SelectChain,
    sc_consensus::DefaultImportQueue<Block>,
    TransactionPoolHandle<Block, FullClient>,
    Consensus,
>;

/// Database, client, pool and import queue.
pub fn new_partial(config: &Configuration) -> Result<Partial, ServiceError> {
    let telemetry = config
        .telemetry_endpoints
        .clone()
        .filter(|endpoints| !endpoints.is_empty())
        .map(|endpoints| -> Result<_, sc_telemetry::Error> {
            let worker = TelemetryWorker::new(16)?;
            let telemetry = worker.handle().new_telemetry(endpoints);
            Ok((worker, telemetry))
        })
        .transpose()?;

    let executor = sc_service::new_wasm_executor::<sp_io::SubstrateHostFunctions>(&config.executor);
    let (client, backend, keystore_container, task_manager) = sc_service::new_full_parts::<Block, RuntimeApi, _>(
        config,
        telemetry.as_ref().map(|(_, telemetry)| telemetry.handle()),
        executor,
        // Justifications of set changes stay when block bodies are pruned: warp sync proves the chain with them.
        vec![Arc::new(GrandpaPruningFilter)],
    )?;
    let client = Arc::new(client);
    check_same_network(config, &client)?;

    let telemetry = telemetry.map(|(worker, telemetry)| {
        task_manager.spawn_handle().spawn("telemetry", None, worker.run());
        telemetry
    });
    // Among blocks that GRANDPA's finality allows.
    let select_chain = sc_consensus::LongestChain::new(backend.clone());
    let transaction_pool = Arc::from(
        sc_transaction_pool::Builder::new(
            task_manager.spawn_essential_handle(),
            client.clone(),
            config.role.is_authority().into(),
        )
        .with_options(config.transaction_pool.clone())
        .with_prometheus(config.prometheus_registry())
        .build(),
    );

    let (grandpa_block_import, grandpa_link) = sc_consensus_grandpa::block_import(
        client.clone(),
        JUSTIFICATION_PERIOD,
        &client,
        select_chain.clone(),
        telemetry.as_ref().map(|telemetry| telemetry.handle()),
    )?;
    let justification_import = grandpa_block_import.clone();

    // From the chain's state: networks of the same runtime have slots of different lengths.
    let babe_config = sc_consensus_babe::configuration(&*client)?;
    let slot_duration = babe_config.slot_duration();
    let inherents: BabeCreateInherentDataProviders<Block> = Arc::new(move |_, _| {
        Box::pin(async move {
            let timestamp = sp_timestamp::InherentDataProvider::from_system_time();
            let slot = sp_consensus_babe::inherents::InherentDataProvider::from_timestamp_and_slot_duration(
                *timestamp,
                slot_duration,
            );
            Ok((slot, timestamp))
        })
    });
    let (block_import, babe_link) = sc_consensus_babe::block_import(
        babe_config,
        grandpa_block_import,
        client.clone(),
        inherents,
        select_chain.clone(),
        OffchainTransactionPoolFactory::new(transaction_pool.clone()),
    )?;
    let (import_queue, babe_worker) = sc_consensus_babe::import_queue(sc_consensus_babe::ImportQueueParams {
        link: babe_link.clone(),
        block_import: block_import.clone(),
        justification_import: Some(Box::new(justification_import)),
        client: client.clone(),
        slot_duration,
        spawner: &task_manager.spawn_essential_handle(),
        registry: config.prometheus_registry(),
        telemetry: telemetry.as_ref().map(|telemetry| telemetry.handle()),
    })?;

    Ok(sc_service::PartialComponents {
        client,
        backend,
        task_manager,
        keystore_container,
        select_chain,
        import_queue,
        transaction_pool,
        other: Consensus {
            block_import,
            grandpa_link,
            babe_link,
            babe_worker,
            telemetry,
        },
    })
}

/// Refuses a database that holds another network than the specification describes. The client opens any database that
/// has a block 0, and would follow the stored network under the other one's name.
fn check_same_network(config: &Configuration, client: &FullClient) -> Result<(), ServiceError> {
    let stored = client.info().genesis_hash;
    let specified = genesis::block_hash(&config.chain_spec.as_storage_builder().build_storage()?)?;
    if stored == specified {
        return Ok(());
    }
    let folder = config.database.path().map(|path| path.display().to_string());
    Err(ServiceError::Other(format!(
        "the database in {} is of another network: its block 0 is {stored:?}, that of the specification '{}' is \
         {specified:?}; give the right --chain, another --base-path, or remove the stored chain with purge-chain",
        folder.unwrap_or_default(),
        config.chain_spec.id()
    )))
}

/// The whole node.
pub fn new_full<N: NetworkBackend<Block, <Block as BlockT>::Hash>>(
    config: Configuration,
) -> Result<TaskManager, ServiceError> {
    let sc_service::PartialComponents {
        client,
        backend,
        mut task_manager,
        import_queue,
        keystore_container,
        select_chain,
        transaction_pool,
        other:
            Consensus {
                block_import,
                grandpa_link,
                babe_link,
                babe_worker,
                mut telemetry,
            },
    } = new_partial(&config)?;

    let metrics = N::register_notification_metrics(config.prometheus_registry());
    let mut net_config = sc_network::config::FullNetworkConfiguration::<_, _, N>::new(
        &config.network,
        config.prometheus_registry().cloned(),
    );
    let genesis_hash = client
        .block_hash(0)?
        .ok_or_else(|| ServiceError::Other("the database has no block 0".into()))?;
    let peer_store = net_config.peer_store_handle();
    // The genesis hash is part of the protocol's name: votes of other networks are not even received.
    let grandpa_protocol = sc_consensus_grandpa::protocol_standard_name(&genesis_hash, &config.chain_spec);
    let (grandpa_peers, grandpa_notifications) =
        sc_consensus_grandpa::grandpa_peers_set_config::<_, N>(grandpa_protocol.clone(), metrics.clone(), peer_store);
    net_config.add_notification_protocol(grandpa_peers);
    let warp_sync = Arc::new(sc_consensus_grandpa::warp_proof::NetworkProvider::new(
        backend.clone(),
        grandpa_link.shared_authority_set().clone(),
        // No hard fork of the authority set has been needed so far.
        Vec::new(),
    ));

    let (network, system_rpc_tx, tx_handler_controller, sync_service, _bitswap) =
        sc_service::build_network(sc_service::BuildNetworkParams {
            config: &config,
            net_config,
            client: client.clone(),
            transaction_pool: transaction_pool.clone(),
            spawn_handle: task_manager.spawn_handle(),
            spawn_essential_handle: task_manager.spawn_essential_handle(),
            import_queue,
            block_announce_validator_builder: None,
            warp_sync_config: Some(WarpSyncConfig::WithProvider(warp_sync)),
            block_relay: None,
            metrics,
            gap_sync_body_policy: None,
        })?;

    if config.offchain_worker.enabled {
        let workers = sc_offchain::OffchainWorkers::new(sc_offchain::OffchainWorkerOptions {
            runtime_api_provider: client.clone(),
            is_validator: config.role.is_authority(),
            keystore: Some(keystore_container.keystore()),
            offchain_db: backend.offchain_storage(),
            transaction_pool: Some(OffchainTransactionPoolFactory::new(transaction_pool.clone())),
            network_provider: Arc::new(network.clone()),
            // No pallet makes HTTP requests, so a compromised runtime cannot either.
            enable_http_requests: false,
            custom_extensions: |_| Vec::new(),
        })?;
        task_manager.spawn_handle().spawn(
            "offchain-workers-runner",
            "offchain-worker",
            workers.run(client.clone(), task_manager.spawn_handle()).boxed(),
        );
    }

    let role = config.role;
    let force_authoring = config.force_authoring;
    let name = config.network.node_name.clone();
    let enable_grandpa = !config.disable_grandpa;
    let prometheus_registry = config.prometheus_registry().cloned();
    let public_addresses = config.network.public_addresses.clone();
    let net_config_path = config.network.net_config_path.clone();
    let local_chain = matches!(
        config.chain_spec.chain_type(),
        sc_service::ChainType::Development | sc_service::ChainType::Local
    );
    let shared_voter_state = SharedVoterState::empty();

    let rpc_builder = {
        let client = client.clone();
        let pool = transaction_pool.clone();
        let select_chain = select_chain.clone();
        let keystore = keystore_container.keystore();
        let justification_stream = grandpa_link.justification_stream();
        let shared_authority_set = grandpa_link.shared_authority_set().clone();
        let shared_voter_state = shared_voter_state.clone();
        let finality_provider = sc_consensus_grandpa::FinalityProofProvider::new_for_service(
            backend.clone(),
            Some(shared_authority_set.clone()),
        );
        Box::new(move |executor: sc_rpc::SubscriptionTaskExecutor| {
            rpc::create(rpc::FullDeps {
                client: client.clone(),
                pool: pool.clone(),
                select_chain: select_chain.clone(),
                babe_worker: babe_worker.clone(),
                keystore: keystore.clone(),
                grandpa: rpc::GrandpaDeps {
                    shared_voter_state: shared_voter_state.clone(),
                    shared_authority_set: shared_authority_set.clone(),
                    justification_stream: justification_stream.clone(),
                    finality_provider: finality_provider.clone(),
                },
                executor,
            })
            .map_err(Into::into)
        })
    };

    let _rpc_handlers = sc_service::spawn_tasks(sc_service::SpawnTasksParams {
        network: network.clone(),
        client: client.clone(),
        keystore: keystore_container.keystore(),
        task_manager: &mut task_manager,
        transaction_pool: transaction_pool.clone(),
        rpc_builder,
        backend,
        system_rpc_tx,
        tx_handler_controller,
        sync_service: sync_service.clone(),
        config,
        telemetry: telemetry.as_mut(),
        tracing_execute_block: None,
    })?;

    if role.is_authority() {
        // After `spawn_tasks`, which puts the keys of `--alice` and its like into the keystore.
        session_keys::warn_if_missing(&*client, &keystore_container.keystore());
        let proposer = sc_basic_authorship::ProposerFactory::new(
            task_manager.spawn_handle(),
            client.clone(),
            transaction_pool.clone(),
            prometheus_registry.as_ref(),
            telemetry.as_ref().map(|telemetry| telemetry.handle()),
        );
        let slot_duration = babe_link.config().slot_duration();
        let babe = sc_consensus_babe::start_babe(sc_consensus_babe::BabeParams {
            keystore: keystore_container.keystore(),
            client: client.clone(),
            select_chain,
            env: proposer,
            block_import,
            sync_oracle: sync_service.clone(),
            justification_sync_link: sync_service.clone(),
            create_inherent_data_providers: move |_, ()| async move {
                let timestamp = sp_timestamp::InherentDataProvider::from_system_time();
                let slot = sp_consensus_babe::inherents::InherentDataProvider::from_timestamp_and_slot_duration(
                    *timestamp,
                    slot_duration,
                );
                Ok((slot, timestamp))
            },
            force_authoring,
            // Without finality blocks become rare, so that a node that returns has few of them to catch up with.
            backoff_authoring_blocks: Some(BackoffAuthoringOnFinalizedHeadLagging::default()),
            babe_link,
            block_proposal_slot_portion: SlotProportion::new(PROPOSAL_PORTION),
            max_block_proposal_slot_portion: None,
            telemetry: telemetry.as_ref().map(|telemetry| telemetry.handle()),
        })?;
        task_manager
            .spawn_essential_handle()
            .spawn_blocking("babe-proposer", Some("block-authoring"), babe);

        // Validators publish their addresses in the DHT, so that they reach each other without boot nodes.
        let dht_events = network
            .event_stream("authority-discovery")
            .filter_map(|event| async move {
                match event {
                    Event::Dht(event) => Some(event),
                    _ => None,
                }
            });
        let (worker, _service) = sc_authority_discovery::new_worker_and_service_with_config(
            sc_authority_discovery::WorkerConfig {
                // Nodes of a local network have no other addresses; elsewhere private ones would only mislead.
                publish_non_global_ips: local_chain,
                public_addresses,
                strict_record_validation: true,
                persisted_cache_directory: net_config_path,
                ..Default::default()
            },
            client,
            Arc::new(network.clone()),
            Box::pin(dht_events),
            sc_authority_discovery::Role::PublishAndDiscover(keystore_container.keystore()),
            prometheus_registry.clone(),
            task_manager.spawn_handle(),
        );
        task_manager
            .spawn_handle()
            .spawn("authority-discovery", Some("networking"), worker.run());
    }

    if enable_grandpa {
        // Without keys the voter only observes: a full node follows finality and casts no vote.
        let keystore = role.is_authority().then(|| keystore_container.keystore());
        let voter = sc_consensus_grandpa::run_grandpa_voter(sc_consensus_grandpa::GrandpaParams {
            config: sc_consensus_grandpa::Config {
                gossip_duration: GOSSIP_DURATION,
                justification_generation_period: JUSTIFICATION_PERIOD,
                name: Some(name),
                observer_enabled: false,
                keystore,
                local_role: role,
                telemetry: telemetry.as_ref().map(|telemetry| telemetry.handle()),
                protocol_name: grandpa_protocol,
            },
            link: grandpa_link,
            network,
            sync: sync_service,
            notification_service: grandpa_notifications,
            voting_rule: sc_consensus_grandpa::VotingRulesBuilder::default().build(),
            prometheus_registry,
            shared_voter_state,
            telemetry: telemetry.as_ref().map(|telemetry| telemetry.handle()),
            // For reports of equivocations.
            offchain_tx_pool_factory: OffchainTransactionPoolFactory::new(transaction_pool),
        })?;
        task_manager
            // Essential: a node without its voter would follow the chain without ever noticing finality.
            .spawn_essential_handle()
            .spawn_blocking("grandpa-voter", None, voter);
    }
    Ok(task_manager)
}
