// Checks a running Alice network from the outside with the unpatched @polkadot/api, as a wallet or an explorer would
// see it. Nothing here depends on the Rust code; amounts are recomputed from docs/spec/emission.md.
//
//   node check.mjs WS_URL SUMMARY_JSON [--seed-from 0x… --to ADDRESS]
//
// SUMMARY_JSON is what scripts/localnet.sh writes. With --seed-from (32-byte seed of the first miner's payout account)
// and --to (another account) it also sends a signed transfer. ALICE_JS_MODULES names the node_modules directory; by
// default that of `scripts/setup.sh --tests`. Prints one line for each check; exit code 1 if one failed.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const UNIT = 10n ** 12n;
const EPOCHS_PER_ERA = 17_520n;
const ERA_BUDGET_FIRST = 10_500_000n * UNIT;
const CONNECT_MS_MAX = 30_000;
const TRANSFER_MS_MAX = 60_000;
/** A payment seen in one block can end up a few blocks later, when the chain's best block is replaced. */
const REORG_BLOCKS_MAX = 10;

const root = fileURLToPath(new URL('../..', import.meta.url));
const cache = process.env.ALICE_CACHE ?? join(homedir(), '.cache/alice');
const modules = process.env.ALICE_JS_MODULES ?? join(cache, 'polkadot-js/node_modules');

let passed = 0;
let failed = 0;

/** Runs one check: `body` throws, or returns details for the log. */
async function check(name, body) {
  try {
    const detail = await body();
    passed += 1;
    console.log(`ok   ${name}${detail ? `: ${detail}` : ''}`);
    return true;
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error?.message ?? error}`);
    return false;
  }
}

function equal(what, found, expected) {
  if (found !== expected) throw new Error(`${what} is ${found}, expected ${expected}`);
}

function within(what, milliseconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${milliseconds / 1000} s`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** C(n): sum of the budgets of all epochs before n, planck. */
function cumulative(epoch) {
  const [era, position] = [epoch / EPOCHS_PER_ERA, epoch % EPOCHS_PER_ERA];
  let sum = 0n;
  for (let k = 0n; k < era; k += 1n) sum += ERA_BUDGET_FIRST >> k;
  return sum + ((ERA_BUDGET_FIRST >> era) * position) / EPOCHS_PER_ERA;
}

const budget = (epoch) => cumulative(epoch + 1n) - cumulative(epoch);
const alice = (planck) => `${planck / UNIT}.${(planck % UNIT).toString().padStart(12, '0')}`;
const total = (values) => values.reduce((sum, value) => sum + value, 0n);

function readArguments() {
  const usage = 'usage: node check.mjs WS_URL SUMMARY_JSON [--seed-from 0x<32-byte seed> --to ADDRESS]';
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { 'seed-from': { type: 'string' }, to: { type: 'string' } },
    });
    const [url, summaryFile] = positionals;
    if (positionals.length !== 2) throw new Error('two arguments are needed');
    const [seed, to] = [values['seed-from'], values.to];
    if ((seed === undefined) !== (to === undefined)) throw new Error('--seed-from and --to go together');
    if (seed !== undefined && !/^0x[0-9a-f]{64}$/i.test(seed)) throw new Error('--seed-from is 0x and 64 hexadecimal digits');
    return { url, summary: JSON.parse(readFileSync(summaryFile, 'utf8')), seed, to };
  } catch (error) {
    console.error(`${error.message}\n${usage}`);
    process.exit(2);
  }
}

function loadPolkadot() {
  try {
    return createRequire(join(modules, 'check.cjs'))('@polkadot/api');
  } catch (error) {
    console.error(`${error.message}\n@polkadot/api is not in ${modules}: run scripts/setup.sh --tests, or set ALICE_JS_MODULES`);
    process.exit(2);
  }
}

async function checkChain(api, summary) {
  const genesis = api.genesisHash.toHex();
  await check('genesis hash', () => {
    equal('it', genesis, `0x${summary.genesis_hash.replace(/^0x/, '')}`);
    return genesis;
  });
  await check('coin', () => {
    // Properties of the node by which polkadot.js formats balances and addresses.
    equal('symbols', api.registry.chainTokens.join(), 'ALICE');
    equal('decimals', api.registry.chainDecimals.join(), '12');
    equal('address prefix', api.registry.chainSS58, 300);
    equal('prefix in the runtime', api.consts.system.ss58Prefix.toNumber(), 300);
    return 'ALICE, 12 decimals, prefix 300';
  });
  await check('addresses in RPC', async () => {
    // polkadot.js sends addresses in the network's own format; a node that knows only registered ones refuses them.
    const address = api.registry.createType('AccountId', new Uint8Array(32).fill(7)).toString();
    await api.rpc.system.accountNextIndex(address);
    return address;
  });
  await check('genesis message', async () => {
    const text = readFileSync(join(root, 'chain-spec/genesis-message.txt'), 'utf8').replace(/[ \t\r\n\f]+$/, '');
    const atGenesis = await api.at(genesis);
    const stored = Buffer.from((await atGenesis.query.genesis.message()).toU8a(true));
    if (!stored.equals(Buffer.from(text, 'utf8'))) throw new Error(`block 0 has ${JSON.stringify(stored.toString())}`);
    equal('hash in the runtime', api.consts.genesis.messageHash.toHex(), api.registry.hash(stored).toHex());
    return `${stored.length} bytes in block 0, as in chain-spec/genesis-message.txt`;
  });
  await check('no premine', async () => {
    const key = api.query.balances.totalIssuance.key();
    const value = await api.rpc.state.getStorage.raw(key, genesis);
    equal('total issuance in block 0', value, null);
    return 'no coin exists in block 0';
  });
}

/** The state in which exactly the epochs of the summary are paid: at the last settlement or a few blocks later. */
async function stateOfSummary(api, summary, minted) {
  const from = Math.max(...summary.epochs.map((epoch) => epoch.settled_block));
  for (let number = from; number <= from + REORG_BLOCKS_MAX; number += 1) {
    const hash = await api.rpc.chain.getBlockHash(number);
    if (hash.isEmpty) break;
    const state = await api.at(hash);
    if ((await state.query.balances.totalIssuance()).toBigInt() === minted) return { state, number };
  }
  throw new Error(`no block from ${from} on has exactly the summary's ${alice(minted)} ALICE in existence`);
}

async function checkMoney(api, summary) {
  const minted = total(summary.epochs.map((epoch) => BigInt(epoch.minted_planck)));
  let then;
  await check('total issuance', async () => {
    const [now, issued] = [await api.query.balances.totalIssuance(), await api.query.emission.issued()].map((v) => v.toBigInt());
    if (now > issued) throw new Error(`${alice(now)} exist, only ${alice(issued)} were issued`);
    if (now < minted) throw new Error(`it is ${alice(now)}, the summary's epochs minted ${alice(minted)}`);
    then = await stateOfSummary(api, summary, minted);
    return `${alice(minted)} ALICE in block ${then.number}, the sum of the epochs' minting (now ${alice(now)})`;
  });
  for (const { epoch, minted_planck: planck, budget_planck: limit } of summary.epochs) {
    await check(`epoch ${epoch}`, async () => {
      const status = (await api.query.epoch.commitments(epoch)).unwrap();
      equal('its commitment is of epoch', status.commitment.epoch.toNumber(), epoch);
      equal('settled', status.settled.isTrue, true);
      const ledger = (await api.query.reward.ledgers(epoch)).unwrap();
      equal('pages paid', ledger.pagesPaid.toNumber(), ledger.pages.toNumber());
      equal('ledger budget', ledger.budget.toBigInt(), budget(BigInt(epoch)));
      equal('summary budget', BigInt(limit), budget(BigInt(epoch)));
      equal('paid', ledger.paid.toBigInt(), BigInt(planck));
      equal('issued', (await api.query.emission.issuedByEpoch(epoch)).toBigInt(), BigInt(planck));
      if (BigInt(planck) > budget(BigInt(epoch))) throw new Error('more was paid than the schedule allows');
      return `paid ${alice(BigInt(planck))} of ${alice(budget(BigInt(epoch)))} ALICE`;
    });
  }
  for (const { address, balance_planck: planck } of summary.miners) {
    await check(`balance of ${address}`, async () => {
      if (!then) throw new Error('not compared, see total issuance');
      const balance = (await then.state.query.system.account(address)).data.free.toBigInt();
      equal(`it in block ${then.number}`, balance, BigInt(planck));
      return `${alice(balance)} ALICE`;
    });
  }
}

/** Sends the transfer; resolves once it is in a block. */
function send(transfer, pair) {
  let stop = () => {};
  const included = new Promise((resolve, reject) => {
    transfer
      .signAndSend(pair, (result) => {
        if (result.dispatchError) reject(new Error(`the transfer failed: ${result.dispatchError.toString()}`));
        else if (result.isError) reject(new Error(`the transfer was refused: ${result.status.type}`));
        else if (result.status.isInBlock) resolve({ hash: result.status.asInBlock, index: result.txIndex });
      })
      .then((unsubscribe) => (stop = unsubscribe), reject);
  });
  return within('the transfer', TRANSFER_MS_MAX, included).finally(() => stop());
}

async function checkTransfer(api, polkadot, summary, seed, to) {
  const pair = new polkadot.Keyring({ type: 'sr25519', ss58Format: 300 }).addFromSeed(Buffer.from(seed.slice(2), 'hex'));
  const known = await check('payout account', () => {
    if (!summary.miners.some((miner) => miner.address === pair.address)) throw new Error(`${pair.address} is not in the summary`);
    if (to === pair.address) throw new Error('--to is the same account');
    return pair.address;
  });
  if (!known) return;
  await check('transfer between earned accounts', async () => {
    const free = async (state, who) => (await state.query.system.account(who)).data.free.toBigInt();
    const amount = (await free(api, pair.address)) / 10n;
    if (amount < UNIT / 1000n) throw new Error(`${pair.address} has less than a hundredth of an ALICE`);
    const { hash, index } = await send(api.tx.balances.transferKeepAlive(to, amount), pair);
    const header = await api.rpc.chain.getHeader(hash);
    const [before, after] = [await api.at(header.parentHash), await api.at(hash)];
    const events = await after.query.system.events();
    const ours = ({ phase }) => phase.isApplyExtrinsic && phase.asApplyExtrinsic.toNumber() === index;
    const paid = events.find((e) => ours(e) && e.event.section === 'transactionPayment' && e.event.method === 'TransactionFeePaid');
    if (!paid) throw new Error('no fee was paid');
    const fee = paid.event.data.actualFee.toBigInt();
    if (fee <= 0n) throw new Error(`the fee is ${fee} planck`);
    // A payout page in the same block may pay one of the two as well.
    const earned = (who) =>
      total(
        events
          .filter((e) => !ours(e) && e.event.section === 'balances' && ['Deposit', 'Minted'].includes(e.event.method))
          .filter((e) => e.event.data.who.toString() === who)
          .map((e) => e.event.data.amount.toBigInt()),
      );
    const change = async (who) => (await free(after, who)) - (await free(before, who)) - earned(who);
    equal('change of the receiver', await change(to), amount);
    equal('change of the sender', await change(pair.address), -amount - fee);
    return `${alice(amount)} ALICE in block ${header.number}, fee ${alice(fee)}`;
  });
}

const { url, summary, seed, to } = readArguments();
const polkadot = loadPolkadot();
const provider = new polkadot.WsProvider(url, 1000, {}, CONNECT_MS_MAX);
const api = new polkadot.ApiPromise({ provider, noInitWarn: true });
const connected = await check('connection', async () => {
  await within('connecting', CONNECT_MS_MAX, api.isReady);
  return `${url}, ${api.runtimeVersion.specName} ${api.runtimeVersion.specVersion}`;
});
if (connected) {
  await checkChain(api, summary);
  await checkMoney(api, summary);
  if (seed) await checkTransfer(api, polkadot, summary, seed, to);
  else console.log('skip transfer: no --seed-from and --to');
}
console.log(`${passed} passed, ${failed} failed`);
await api.disconnect().catch(() => {});
process.exit(failed === 0 ? 0 : 1);
