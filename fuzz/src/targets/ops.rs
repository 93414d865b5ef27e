//! Operation sequences: bytes decoded to operations on engine and oracle, on a simulated disk, power losses among them.

use betree_testkit::{Change, Edit, End, Fold, Op, Rng, SimStorage};

use super::Source;
use crate::{Place, SPACES, Session, Shape, read_all};

/// The most operations of one input.
const MOST: usize = 200;

fn key(source: &mut Source<'_>) -> Vec<u8> {
    match source.u8() {
        0 => Vec::new(),
        255 => vec![0xff; 1 + source.below(3)],
        254 => {
            let mut key = vec![b'l'; 200];
            key.push(source.u8());
            key
        }
        n @ 128.. => vec![b'k', n, source.u8()],
        n => vec![b'k', n],
    }
}

fn value(source: &mut Source<'_>) -> Vec<u8> {
    let len = match source.u8() {
        n @ 250.. => usize::from(n - 249) * 1500,
        n => usize::from(n),
    };
    let mut value = source.bytes(len.min(4));
    value.resize(len, b'v');
    value
}

fn edit(source: &mut Source<'_>, session: &Session) -> Option<Edit> {
    let keyspace = source.below(SPACES.len());
    session.oracle.content().keyspaces[keyspace].as_ref()?;
    let fold = SPACES[keyspace].1;
    let change = match source.below(8) {
        0 => Change::Delete(key(source)),
        1 => Change::RangeDelete(key(source), key(source)),
        2..5 if fold != Fold::None => {
            let operand = source.bytes(8);
            Change::Merge(key(source), operand)
        }
        _ => Change::Put(key(source), value(source)),
    };
    Some(Edit { keyspace, change })
}

fn op(source: &mut Source<'_>, session: &Session) -> Option<Op> {
    let keyspace = source.below(SPACES.len());
    let there = session.oracle.content().keyspaces[keyspace].is_some();
    Some(match source.u8() % 32 {
        0..10 => Op::Single(edit(source, session)?),
        10..16 => {
            let count = source.below(6);
            Op::Batch(
                (0..count).filter_map(|_| edit(source, session)).collect(),
                source.u8().is_multiple_of(4),
            )
        }
        16 if there => Op::Get(keyspace, key(source)),
        17 if there => Op::MultiGet(keyspace, vec![key(source), key(source), key(source)]),
        18 | 19 if there => Op::Range {
            keyspace,
            low: key(source),
            high: (!source.u8().is_multiple_of(4)).then(|| key(source)),
            backward: u64::from(source.u16()) << 32 | u64::from(source.u16()),
            limit: usize::from(source.u8()),
        },
        20 => Op::Snapshot,
        21 => Op::ReadSnapshot(source.below(4)),
        22 => Op::DropSnapshot(source.below(4)),
        23 => Op::Persist,
        24 => Op::Checkpoint,
        25 if there && source.u8().is_multiple_of(2) => Op::CompactRange(keyspace, key(source), key(source)),
        25 => Op::Compact,
        26 => Op::Check,
        27 => Op::Reopen(if source.u8().is_multiple_of(2) { End::Close } else { End::Drop }),
        28 => {
            let last = SPACES.len() - 1;
            let there = session.oracle.content().keyspaces[last].is_some();
            Op::Single(Edit { keyspace: last, change: if there { Change::Drop } else { Change::Create } })
        }
        _ => Op::Background(1 + source.below(6)),
    })
}

/// Cuts the power (or kills), opens anew, compares with what was promised.
fn power_loss(session: Session, disk: &SimStorage, kill: bool) -> (Session, std::sync::Arc<SimStorage>) {
    let mut session = session;
    let shape = session.shape.clone();
    let disk = if kill { disk.kill() } else { disk.crash() };
    session.abandon();
    let db = shape.builder().open_on(disk.as_storage()).expect("it opens after a power loss");
    let found = read_all(&db).expect("it reads after a power loss");
    drop(db);
    let committed = session.oracle.len();
    let allowed = if kill { committed } else { session.durable }..=committed;
    let prefix = session.oracle.prefix_with(found.digest(), allowed.clone());
    assert!(prefix.is_some(), "{}", session.oracle.explain(&found, allowed));
    let place = Place::Disk(disk.clone());
    let session = Session::open(place, shape, Some(found)).unwrap_or_else(|e| panic!("opened again: {e}"));
    (session, disk)
}

/// The bytes: a seed for the options, then operations.
pub fn ops(bytes: &[u8]) {
    let mut source = Source(bytes);
    let shape = Shape::tiny(&mut Rng::new(u64::from(source.u16())));
    let mut disk = SimStorage::new(1);
    let mut session = Session::open(Place::Disk(disk.clone()), shape, None)
        .unwrap_or_else(|e| panic!("first opening: {e}"));
    let held = |session: &Session, result: Result<(), crate::Failure>| {
        if let Err(failure) = result {
            panic!("{failure}\n{}", session.trace());
        }
    };
    let created = session.create_keyspaces();
    held(&session, created);
    for _ in 0..MOST {
        if source.is_over() {
            break;
        }
        if source.u8() == 255 {
            let kill = source.u8().is_multiple_of(2);
            (session, disk) = power_loss(session, &disk, kill);
            continue;
        }
        let Some(op) = op(&mut source, &session) else { continue };
        let applied = session.apply(&op);
        held(&session, applied);
    }
    held(&session, session.compare());
    held(&session, session.check());
}
