//! A real database under a paused clock.

use std::sync::Arc;

use bytes::Bytes;
use catena_kv::{
    Atomic, BoxFuture, Database, Isolation, KvError, RangeQuery, RangeResult, Transaction, Tx, TxOptions,
    Versionstamp,
};
use tokio::runtime::Handle;

/// A database whose calls take no time on tokio's clock. A paused clock jumps to the next timer when nothing is ready, and an answer that
/// is on its way over a real network is not ready. While a blocking task runs it does not jump, so the waiting is done there.
pub struct Patient {
    inner: Arc<dyn Database>,
}

impl Patient {
    /// `inner` without time.
    pub fn new(inner: Arc<dyn Database>) -> Patient {
        Patient { inner }
    }
}

impl Database for Patient {
    fn begin(&self, options: TxOptions) -> Result<Tx, KvError> {
        Ok(Arc::new(PatientTransaction { inner: self.inner.begin(options)? }))
    }
}

struct PatientTransaction {
    inner: Tx,
}

impl PatientTransaction {
    /// Waits for `call` where the clock does not see it.
    async fn wait<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Tx, &Handle) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, KvError> {
        let (tx, handle) = (self.inner.clone(), Handle::current());
        tokio::task::spawn_blocking(move || call(&tx, &handle)).await.unwrap_or(Err(KvError::Cancelled))
    }
}

impl Transaction for PatientTransaction {
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>> {
        let key = key.to_vec();
        Box::pin(self.wait(move |tx, handle| handle.block_on(tx.get(&key, isolation))))
    }

    fn get_range(&self, query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>> {
        Box::pin(self.wait(move |tx, handle| handle.block_on(tx.get_range(query))))
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.inner.set(key, value)
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.inner.clear(key)
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.clear_range(begin, end)
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.inner.atomic(key, op, operand)
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        self.inner.set_versionstamped_key(key, offset, value)
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        self.inner.set_versionstamped_value(key, value, offset)
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.add_read_conflict(begin, end)
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.add_write_conflict(begin, end)
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(self.wait(|tx, handle| handle.block_on(tx.read_version())))
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn cancel(&self) {
        self.inner.cancel();
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        Box::pin(self.wait(|tx, handle| handle.block_on(tx.commit())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_stands_still_while_the_store_works() {
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let _ = done.send(());
        });
        let tx =
            PatientTransaction { inner: catena_kv::MemDatabase::new().begin(TxOptions::default()).unwrap() };
        let begin = Instant::now();
        let timer = tokio::spawn(tokio::time::sleep(Duration::from_secs(1)));
        tx.wait(move |_, _| wait.recv().map_err(|_| KvError::Cancelled)).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert!(!timer.is_finished());
    }
}
