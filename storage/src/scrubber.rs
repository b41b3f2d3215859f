//! A disk's scrubber: reads everything that is committed, a piece at a time, and hands what does not match its checksum to repair.
//!
//! Pendings are not read: they are either committed soon, and read by the next pass, or dropped.

use std::ops::Bound;
use std::sync::Arc;

use catena_engine::{EngineError, ReadData, ReadRequest};
use catena_proto::ids::*;
use catena_rt::time::{Instant, sleep, timeout};
use catena_rt::yield_now;
use rand::Rng;
use rand::rngs::StdRng;
use tracing::{info, warn};

use crate::disk::{Disk, is_gone};
use crate::node::Node;
use crate::scrub::{Order, Pace, Pieces, turn};

/// Chunks listed together.
const PAGE: usize = 256;
/// Before a read for which there was no memory is tried again.
const BUSY: std::time::Duration = std::time::Duration::from_millis(50);

/// Scrubs a disk, again and again, until it fails.
pub(crate) async fn scrub(node: Arc<Node>, disk: Arc<Disk>, mut rng: StdRng) {
    loop {
        let order = match disk.scrub.take() {
            Some(order) => order,
            None => {
                let woken = disk.scrub.woken();
                let ordered = match disk.scrub.rest() {
                    Some(rest) => timeout(rest, woken).await.is_ok(),
                    None => {
                        woken.await;
                        true
                    }
                };
                if ordered {
                    continue;
                }
                Order::default()
            }
        };
        if disk.has_failed() {
            return;
        }
        pass(&node, &disk, order, rng.random()).await;
    }
}

/// Wall time, shown to people only.
fn now(node: &Node) -> u64 {
    u64::try_from(node.clock.wall().0).unwrap_or(0)
}

async fn pass(node: &Arc<Node>, disk: &Arc<Disk>, order: Order, chance: u64) {
    disk.scrub.begin(order, now(node));
    disk.metrics.scrub_running.set(1);
    let targets = turn(disk.engine().targets(), chance, order.target);
    disk.scrub.counted(count(disk, &targets).await);
    let (begun, found) = (Instant::now(), disk.metrics.scrub_found.get());
    info!(node = %node.id, disk = disk.path(), targets = targets.len(), bytes = disk.scrub.standing().total, "scrub begins");
    let mut pace = Pace::new();
    let mut whole = true;
    for target in targets {
        whole = one_target(node, disk, target, &mut pace).await;
        if !whole {
            break;
        }
    }
    disk.scrub.end(whole, now(node));
    disk.metrics.scrub_running.set(0);
    let (bytes, found) = (disk.scrub.standing().verified, disk.metrics.scrub_found.get() - found);
    if whole {
        disk.metrics.scrub_passes.inc();
        disk.metrics.scrub_finished.set((now(node) / 1_000_000_000) as i64);
    }
    info!(node = %node.id, disk = disk.path(), whole, bytes, found, took = ?begun.elapsed(), "scrub ends");
}

/// Bytes that a pass will read, as far as is known now.
async fn count(disk: &Disk, targets: &[TargetId]) -> u64 {
    let mut total = 0;
    for &target in targets {
        let mut from = Bound::Unbounded;
        loop {
            let page = disk.list(target, from, Bound::Unbounded, PAGE * 4);
            total += page.iter().map(|listed| u64::from(listed.length)).sum::<u64>();
            match page.last() {
                Some(last) => from = Bound::Excluded(last.chunk),
                None => break,
            }
            yield_now().await;
        }
    }
    total
}

/// False if the pass is not to go on.
async fn one_target(node: &Arc<Node>, disk: &Arc<Disk>, target: TargetId, pace: &mut Pace) -> bool {
    let mut from = Bound::Unbounded;
    loop {
        let page = disk.list(target, from, Bound::Unbounded, PAGE);
        let Some(last) = page.last().map(|listed| listed.chunk) else { return true };
        from = Bound::Excluded(last);
        let mut pieces = Pieces::of(page);
        loop {
            let batch = pieces.next();
            if batch.is_empty() {
                break;
            }
            let Some(rate) = disk.scrub.going() else { return false };
            let begun = Instant::now();
            let mut bytes = 0;
            for (request, read) in batch.iter().zip(disk.engine().read_many(target, &batch).await) {
                match judge(node, disk, target, request, read).await {
                    Judged::Good(verified) => bytes += verified,
                    Judged::Done => pieces.skip(request.chunk),
                    Judged::DiskFailed => return false,
                }
            }
            disk.scrub.verified(bytes);
            disk.metrics.scrub_verified.inc_by(bytes);
            let pause = pace.pause(rate, bytes, begun.elapsed());
            if pause.is_zero() {
                yield_now().await;
            } else {
                // An order may end it.
                let _ = timeout(pause, disk.scrub.woken()).await;
            }
        }
    }
}

enum Judged {
    /// So many bytes are as they were written.
    Good(u64),
    /// Nothing more is to be read of this chunk.
    Done,
    DiskFailed,
}

async fn judge(
    node: &Arc<Node>,
    disk: &Arc<Disk>,
    target: TargetId,
    request: &ReadRequest,
    read: Result<ReadData, EngineError>,
) -> Judged {
    let mut read = read;
    loop {
        match read {
            Ok(read) => return Judged::Good(read.data.len() as u64),
            Err(EngineError::Busy { .. }) => {}
            Err(error) if is_gone(&error) || matches!(error, EngineError::NoSuchTarget(_)) => {
                return Judged::Done;
            }
            Err(error @ (EngineError::Corrupt { .. } | EngineError::ReadFailed { .. })) => {
                node.repairs.report(node, disk, target, request.chunk, &error);
                return Judged::Done;
            }
            Err(EngineError::DiskFailed { .. }) => return Judged::DiskFailed,
            Err(error) => {
                warn!(node = %node.id, disk = disk.path(), %target, chunk = %request.chunk, %error, "scrub cannot read a chunk; passing it over");
                return Judged::Done;
            }
        }
        sleep(BUSY).await;
        let again = disk.engine().read_many(target, &[*request]).await.pop();
        read = again.unwrap_or(Err(EngineError::NotFound(request.chunk)));
    }
}
