//! One request for a read version serves everyone who waits for one.

use std::sync::atomic::{AtomicU64, Ordering};

use catena_kv::KvError;
use parking_lot::Mutex as Latch;
use tokio::sync::Mutex;

/// Shares answers among those who asked before the request for it was sent: a version that was already on its way need not contain
/// what the newcomer saw acknowledged.
pub(crate) struct Shared<T> {
    /// Numbers the askers.
    askers: AtomicU64,
    /// Whoever holds it has a request under way. First come, first served; a holder that gives up lets the next one ask.
    turn: Mutex<()>,
    /// The latest answer, and the number of the first asker for whom it is too early.
    latest: Latch<Option<(u64, Result<T, KvError>)>>,
}

impl<T: Clone> Shared<T> {
    pub(crate) fn new() -> Shared<T> {
        Shared { askers: AtomicU64::new(0), turn: Mutex::new(()), latest: Latch::new(None) }
    }

    /// The answer to an `ask` that began after this call, mine or another's.
    pub(crate) async fn get<F: Future<Output = Result<T, KvError>>>(
        &self,
        ask: impl FnOnce() -> F,
    ) -> Result<T, KvError> {
        let number = self.askers.fetch_add(1, Ordering::SeqCst);
        let _turn = self.turn.lock().await;
        if let Some((before, answer)) = &*self.latest.lock()
            && number < *before
        {
            return answer.clone();
        }
        let before = self.askers.load(Ordering::SeqCst);
        let answer = ask().await;
        *self.latest.lock() = Some((before, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_and_nobody_gets_an_answer_from_before_he_asked() {
        let shared = Arc::new(Shared::new());
        let (asked, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (shared, asked, gate) = (shared.clone(), asked.clone(), gate.clone());
            tokio::spawn(async move {
                shared
                    .get(|| async move {
                        let number = asked.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        Ok(number)
                    })
                    .await
            })
        };
        let first = ask();
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..10).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Ok(0));
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(1));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_asker_who_gives_up_leaves_the_question_to_the_next() {
        let shared = Arc::new(Shared::new());
        let silent = {
            let shared = shared.clone();
            tokio::spawn(async move { shared.get(std::future::pending::<Result<u8, KvError>>).await })
        };
        tokio::task::yield_now().await;
        let next = {
            let shared = shared.clone();
            tokio::spawn(async move { shared.get(|| async { Ok(7) }).await })
        };
        tokio::task::yield_now().await;
        silent.abort();
        assert_eq!(next.await.unwrap(), Ok(7));
    }
}
