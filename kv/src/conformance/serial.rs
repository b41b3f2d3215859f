//! Serialisability: random transactions run at the same time, then everything is replayed on a plain map in the order of the stamps.
//!
//! Checked of each transaction, whether it committed or not: all its reads, snapshot reads too, are those of one version, its read
//! version. Of each committed one also: its serialisable reads are still true at the place in the order where it committed, which is
//! serialisability. And of the order: a transaction sees what was acknowledged before it began.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::conformance::history::{Map, Op};
use crate::conformance::{Case, Draws};
use crate::{KvError, RangeQuery, USER_KEY_END, Versionstamp};

/// What one transaction did.
struct Record {
    /// Greatest version acknowledged to anyone before it began.
    acknowledged: u64,
    read_version: u64,
    ops: Vec<Op>,
    /// The stamp if it committed something.
    stamp: Option<Versionstamp>,
}

#[derive(Clone, Copy)]
struct Load {
    seed: u64,
    tasks: u64,
    transactions: u64,
    ops: u64,
    keys: u64,
}

/// Short transactions on many keys.
pub async fn random_concurrent_transactions_are_serialisable(case: Arc<Case>) {
    check(case, Load { seed: 1, tasks: 16, transactions: 60, ops: 6, keys: 60 }).await;
}

/// Long transactions on few keys, which nearly always conflict.
pub async fn few_keys_and_long_transactions_are_serialisable(case: Arc<Case>) {
    check(case, Load { seed: 2, tasks: 8, transactions: 60, ops: 16, keys: 9 }).await;
}

/// On several threads, so that commits and reads really are at the same time.
pub async fn parallel_transactions_are_serialisable(case: Arc<Case>) {
    let load = Load { seed: 3, tasks: 32, transactions: 40, ops: 5, keys: 40 };
    let run = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        runtime.expect("a tokio runtime").block_on(check(case, load));
    };
    std::thread::spawn(run).join().expect("the check passed");
}

async fn check(case: Arc<Case>, load: Load) {
    let records = Arc::new(Mutex::new(Vec::new()));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..load.tasks {
        let (case, records, acknowledged) = (case.clone(), records.clone(), acknowledged.clone());
        tasks.spawn(async move {
            let draws = Draws::new(load.seed << 32 | task);
            for _ in 0..load.transactions {
                let record = one(&case, &draws, load, &acknowledged).await;
                records.lock().push(record);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let records = std::mem::take(&mut *records.lock());
    let page = case.begin().get_range(RangeQuery::new("", USER_KEY_END).target_bytes(0)).await.unwrap();
    let end: Map = page.items.into_iter().map(|item| (item.key, item.value)).collect();
    let committed = verify(&records, &end).unwrap_or_else(|wrong| panic!("seed {}: {wrong}", load.seed));
    let total = records.len();
    // A load without commits, or without refusals, would prove nothing.
    assert!(committed > total / 20 && committed < total, "{committed} of {total} committed");
}

async fn one(case: &Case, draws: &Draws, load: Load, acknowledged: &AtomicU64) -> Record {
    let before = acknowledged.load(Ordering::SeqCst);
    let tx = case.begin();
    let read_version = tx.read_version().await.unwrap();
    let mut ops = Vec::new();
    for _ in 0..1 + draws.below(load.ops) {
        let mut op = Op::draw(draws, load.keys);
        op.run(&tx).await.unwrap();
        ops.push(op);
        if draws.below(2) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let stamp = match tx.commit().await {
        Ok(stamp) => {
            assert_eq!(stamp.is_some(), ops.iter().any(Op::is_write));
            stamp
        }
        Err(KvError::Conflict) => None,
        Err(error) => panic!("{error}"),
    };
    if let Some(stamp) = stamp {
        acknowledged.fetch_max(stamp.version(), Ordering::SeqCst);
    }
    Record { acknowledged: before, read_version, ops, stamp }
}

/// How many committed, or what is wrong.
fn verify(records: &[Record], end: &Map) -> Result<usize, String> {
    let mut committed = BTreeMap::new();
    for record in records {
        if record.read_version < record.acknowledged {
            return Err(format!(
                "read version {} although {} was acknowledged before",
                record.read_version, record.acknowledged
            ));
        }
        if let Some(stamp) = record.stamp
            && committed.insert(stamp, record).is_some()
        {
            return Err(format!("stamp {stamp:?} was given twice"));
        }
    }
    // The state after every version, and serialisable reads at the place of the commit.
    let mut states = BTreeMap::from([(0, Map::new())]);
    let mut map = Map::new();
    for (stamp, record) in &committed {
        for op in &record.ops {
            op.replay(&mut map, true).map_err(|wrong| format!("not serialisable at {stamp:?}: {wrong}"))?;
        }
        states.insert(stamp.version(), map.clone());
    }
    if map != *end {
        return Err(format!("the database holds {end:?}, the commits make {map:?}"));
    }
    for record in records {
        let state = states.range(..=record.read_version).next_back().map(|(_, state)| state);
        let mut map = state.cloned().unwrap_or_default();
        for op in &record.ops {
            op.replay(&mut map, false)
                .map_err(|wrong| format!("not a snapshot at version {}: {wrong}", record.read_version))?;
        }
    }
    Ok(committed.len())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Isolation;

    fn record(read_version: u64, ops: Vec<Op>, version: u64) -> Record {
        Record { acknowledged: 0, read_version, ops, stamp: Some(Versionstamp::new(version, 0)) }
    }

    /// The checker itself must not be blind: write skew, a lost write and a stale read are found.
    #[test]
    fn the_checker_finds_what_is_wrong() {
        let key = |k: &'static str| Bytes::from_static(k.as_bytes());
        let get = |k, value: Option<&'static str>| Op::Get(key(k), Isolation::Serializable, value.map(key));
        let set = |k, value| Op::Set(key(k), key(value));
        let end = |items: &[(&'static str, &'static str)]| -> Map {
            items.iter().map(|&(k, v)| (key(k), key(v))).collect()
        };
        let skew = [
            record(0, vec![get("a", None), set("b", "1")], 1),
            record(0, vec![get("b", None), set("a", "1")], 2),
        ];
        assert!(verify(&skew, &end(&[("a", "1"), ("b", "1")])).is_err());
        let fine =
            [record(0, vec![set("a", "1")], 1), record(1, vec![get("a", Some("1")), set("a", "2")], 2)];
        assert_eq!(verify(&fine, &end(&[("a", "2")])), Ok(2));
        assert!(verify(&fine, &end(&[("a", "1")])).is_err());
        let mut stale = record(1, vec![set("b", "1")], 3);
        stale.acknowledged = 2;
        assert!(verify(&[stale], &end(&[("b", "1")])).is_err());
    }
}
