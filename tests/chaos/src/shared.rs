//! The part of the namespace that all clients share: a few names in a few directories, made, linked, moved between the directories,
//! removed and listed by many hands at once, through several metadata services. What everybody was told is one history, and one order of
//! it must explain all answers (`catena_model`, the simulator's own checker).
//!
//! The search for that order grows with the history, so there are many short ones, each in a directory of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use catena_client::Catena;
use catena_model::names::History;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::journal::Journal;

/// Of each client.
const HANDS: usize = 2;
/// Calls of one hand in one history.
const CALLS: usize = 30;

/// Makes and checks one history after the other until `done`.
pub async fn histories(
    catenas: &[Catena],
    seed: u64,
    done: &AtomicBool,
    journal: &Arc<Journal>,
) -> Result<(), String> {
    let clock = Instant::now();
    for round in 0.. {
        if done.load(Relaxed) {
            break;
        }
        let base = format!("/shared-{round}");
        catenas[0].mkdir(&*base, 0o755).await.map_err(|error| format!("mkdir {base}: {error}"))?;
        let history = Arc::new(History::below(base.clone()));
        let mut hands = tokio::task::JoinSet::new();
        for hand in 0..HANDS * catenas.len() {
            let (catena, history) = (catenas[hand % catenas.len()].clone(), history.clone());
            let journal = journal.clone();
            let mut random = StdRng::seed_from_u64(seed ^ (round << 8) ^ hand as u64);
            hands.spawn(async move {
                for _ in 0..CALLS {
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
                    let begun = Instant::now();
                    history.one(&catena, &mut random, || clock.elapsed().as_nanos() as u64).await;
                    journal.took("a call of the shared namespace", begun);
                    journal.names.fetch_add(1, Relaxed);
                }
            });
        }
        while let Some(hand) = hands.join_next().await {
            hand.map_err(|error| error.to_string())?;
        }
        if let Some(error) = history.errors.lock().first() {
            return Err(format!("{base}: {error}"));
        }
        let whole = history.clone();
        let wrong = tokio::task::spawn_blocking(move || whole.contradiction()).await;
        if let Some(wrong) = wrong.map_err(|error| error.to_string())? {
            return Err(format!("{base}: {wrong}"));
        }
        journal.histories.fetch_add(1, Relaxed);
        catenas[0].remove_all(&*base).await.map_err(|error| format!("remove {base}: {error}"))?;
    }
    Ok(())
}
