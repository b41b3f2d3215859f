//! Ids after a restore. Those that were given out since the backup was made are in use by chunks on disks, and what is restored does not know
//! it: a new file with such an id would find another's bytes. So a restored store begins far behind them.

use catena_kv::{Database, Isolation, Jitter, KvError, Retry, transact};
use catena_kv_archive::Keys;
use catena_meta::schema::key::{ALLOCATORS, allocator};
use catena_mgmtd::record::{self, IdsRecord};

/// Numbers of one allocator of inode ids: at a million files a second it takes an hour to reserve as many, and 2^31 restores fit.
const INODES: i64 = 1 << 32;
/// The first number that an allocator gives out.
const FIRST: i64 = 4096 / ALLOCATORS as i64;
const TARGETS: u64 = 1 << 20;
const CHAINS: u32 = 1 << 10;

/// Passes over ids in a store of `keys`. To do it twice does no harm.
pub async fn pass_over(db: &dyn Database, keys: Keys, retry: Retry) -> Result<(), KvError> {
    transact(db, retry.idempotent(), &Jitter::new(rand::random()), |tx| async move {
        if keys.holds(b"IALO") {
            for shard in 0..ALLOCATORS {
                let key = allocator(shard);
                let next = tx.get(&key, Isolation::Serializable).await?;
                let next = next.and_then(|value| Some(i64::from_le_bytes(value[..].try_into().ok()?)));
                tx.set(&key, &(next.unwrap_or(FIRST).max(FIRST) + INODES).to_le_bytes())?;
            }
        }
        let key = record::keys::ids();
        if keys.holds(b"MGMT")
            && let Some(value) = tx.get(&key, Isolation::Serializable).await?
            && let Ok(ids) = record::decode::<IdsRecord>(&key, &value)
        {
            let ids = IdsRecord {
                target: ids.target.saturating_add(TARGETS),
                chain: ids.chain.saturating_add(CHAINS),
            };
            tx.set(&key, &record::encode(&ids))?;
        }
        Ok::<_, KvError>(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use catena_kv::{MemDatabase, TxOptions};

    use super::*;

    #[tokio::test]
    async fn no_id_from_before_is_given_out_again_whether_its_allocator_was_in_the_backup_or_not() {
        let db = MemDatabase::new();
        let tx = db.begin(TxOptions::default()).unwrap();
        tx.set(&allocator(3), &70_000_i64.to_le_bytes()).unwrap();
        let ids = IdsRecord { target: 9, chain: 5 };
        tx.set(&record::keys::ids(), &record::encode(&ids)).unwrap();
        tx.commit().await.unwrap();
        pass_over(&db, Keys::All, Retry::default()).await.unwrap();
        let tx = db.begin(TxOptions::default()).unwrap();
        for shard in 0..ALLOCATORS {
            let value = tx.get(&allocator(shard), Isolation::Snapshot).await.unwrap().unwrap();
            let next = i64::from_le_bytes(value[..].try_into().unwrap());
            assert_eq!(next, INODES + if shard == 3 { 70_000 } else { FIRST });
        }
        let key = record::keys::ids();
        let value = tx.get(&key, Isolation::Snapshot).await.unwrap().unwrap();
        let ids = record::decode::<IdsRecord>(&key, &value).unwrap();
        assert_eq!(ids, IdsRecord { target: 9 + TARGETS, chain: 5 + CHAINS });
        // A store that is only meta's gets nothing of mgmtd's.
        let meta = MemDatabase::new();
        pass_over(&meta, Keys::Meta, Retry::default()).await.unwrap();
        let tx = meta.begin(TxOptions::default()).unwrap();
        assert_eq!(tx.get(&key, Isolation::Snapshot).await.unwrap(), None);
    }
}
