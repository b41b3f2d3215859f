//! Batches of reads. Every item is decided and answered on its own: a bad one spoils nothing. All clean items of one target go to its
//! disk in one trip; dirty ones wait on their own beside them.
//!
//! R11: an item's version is fixed by the read itself, and only when everything has been read is the lease looked at. Whoever was
//! paused in between finds it run out, and answers nothing that may be old.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_buf::Buf;
use catena_craq::{Fenced, ReadAt};
use catena_engine::{EngineError, ReadData, ReadRequest};
use catena_proto::frame::{self, ReadItem, ReadResult};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::time::{Instant, timeout, timeout_at};
use futures_util::future::{join, join_all};
use tokio::sync::oneshot;
use zerocopy::IntoBytes;

use crate::disk::is_gone;
use crate::metrics::OpKind;
use crate::node::Node;
use crate::request;
use crate::service::{Answer, only};
use crate::target::{ReadWake, Reading, Target, Waiting};

/// How long a read waits for a commit that is under way before it asks the tail; doubled up to [`LONGEST_WAIT`] between questions.
const DIRTY_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How often a read is decided anew because the chain, or a version under it, changed.
const ATTEMPTS: usize = 16;

/// An item that was read, and may be answered if the lease still holds.
struct Done {
    target: Arc<Target>,
    at: Fenced<ReadAt>,
    /// `None`: the chunk does not exist, which is an answer like any other and counts only under the lease (R11).
    data: Option<ReadData>,
}

type Outcome = Result<Done, Status>;

/// Items of one target that may be read now.
struct Group {
    target: Arc<Target>,
    places: Vec<usize>,
    fences: Vec<Fenced<ReadAt>>,
    requests: Vec<ReadRequest>,
}

/// Answers a batch of reads.
pub(crate) async fn batch(node: &Arc<Node>, body: Bytes, room: &[u32], deadline: Duration) -> (Answer, u64) {
    let items = match request::decode_reads(&body) {
        Ok(items) if items.len() == room.len() => items,
        Ok(_) => return (only(Status::Malformed), 0),
        Err(status) => return (only(status), 0),
    };
    let until = Instant::now() + deadline;
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(items.len());
    let (groups, slow) = sort(node, items, room, &mut outcomes);
    let clean = join_all(groups.into_iter().map(|group| read_group(node, group)));
    let dirty = join_all(slow.into_iter().map(|(place, reading)| async move {
        let read = one(node, &items[place], reading, until);
        (place, timeout_at(until, read).await.unwrap_or(Err(Status::TimedOut)))
    }));
    let (clean, dirty) = join(clean, dirty).await;
    let mut again = Vec::new();
    for (place, outcome) in clean.into_iter().flatten() {
        match outcome {
            Some(outcome) => outcomes[place] = outcome,
            None => again.push(place),
        }
    }
    for (place, outcome) in dirty {
        outcomes[place] = outcome;
    }
    if !again.is_empty() {
        let again = again.into_iter().map(|place| async move {
            let read = one(node, &items[place], None, until);
            (place, timeout_at(until, read).await.unwrap_or(Err(Status::TimedOut)))
        });
        for (place, outcome) in join_all(again).await {
            outcomes[place] = outcome;
        }
    }
    encode(node, outcomes)
}

/// Decides every item: what can be read now by target, and what has to wait. Refusals are outcomes already.
#[allow(clippy::type_complexity)]
fn sort(
    node: &Arc<Node>,
    items: &[ReadItem],
    room: &[u32],
    outcomes: &mut Vec<Outcome>,
) -> (Vec<Group>, Vec<(usize, Option<Reading>)>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut slow = Vec::new();
    let mut wanted = 0;
    for (place, (item, &room)) in items.iter().zip(room).enumerate() {
        let length = item.length.get();
        let checked = request::check_read(item, wanted);
        if let Err(status) = checked.and(if room < length { Err(Status::Invalid) } else { Ok(()) }) {
            outcomes.push(Err(status));
            continue;
        }
        wanted += u64::from(length);
        // Stands until it is overwritten.
        outcomes.push(Err(Status::NotServing));
        let Some(target) = node.target_of(ChainId(item.chain.get())) else { continue };
        let chain_version = ChainVersion(item.chain_version.get());
        if chain_version > target.adopted() {
            slow.push((place, None));
            continue;
        }
        match target.read(chain_version, item.chunk()) {
            Reading::Serve(fence) => {
                let group = groups.iter().position(|group| Arc::ptr_eq(&group.target, &target));
                let group = group.unwrap_or_else(|| {
                    let (places, fences, requests) = Default::default();
                    groups.push(Group { target, places, fences, requests });
                    groups.len() - 1
                });
                let group = &mut groups[group];
                group.requests.push(read_request(item, &fence));
                group.fences.push(fence);
                group.places.push(place);
            }
            Reading::Refused(status) => outcomes[place] = Err(status),
            waiting @ Reading::Wait(..) => slow.push((place, Some(waiting))),
        }
    }
    (groups, slow)
}

fn read_request(item: &ReadItem, fence: &Fenced<ReadAt>) -> ReadRequest {
    ReadRequest {
        chunk: item.chunk(),
        at: crate::disk::at(fence.peek()),
        offset: item.offset.get(),
        len: item.length.get(),
        // The client verifies every piece too, but only who reads from the disk can tell a bad disk from a bad network. At the speed
        // of CRC32C instructions that costs less than sending the data.
        verify: true,
    }
}

/// Reads what is clean; `None` for an item whose version was overtaken meanwhile.
async fn read_group(node: &Arc<Node>, group: Group) -> Vec<(usize, Option<Outcome>)> {
    let Group { target, places, fences, requests } = group;
    let reads = target.disk.engine().read_many(target.id, &requests).await;
    let items = places.into_iter().zip(fences).zip(requests.iter().zip(reads));
    items.map(|((place, at), (request, read))| (place, outcome(node, &target, at, request, read))).collect()
}

fn outcome(
    node: &Arc<Node>,
    target: &Arc<Target>,
    at: Fenced<ReadAt>,
    request: &ReadRequest,
    read: Result<ReadData, EngineError>,
) -> Option<Outcome> {
    match read {
        Ok(data) => Some(Ok(Done { target: target.clone(), at, data: Some(data) })),
        // Absent for good, unless a named version was wanted: that one has been committed and overtaken.
        Err(error) if is_gone(&error) && matches!(at.peek(), ReadAt::Pending(_)) => None,
        Err(EngineError::NotFound(_)) => Some(Ok(Done { target: target.clone(), at, data: None })),
        Err(error) => Some(Err(target.disk.read_failed(node, target, request.chunk, &error))),
    }
}

/// One item: decided if it is not yet, waited for if the chunk is dirty, read.
async fn one(node: &Arc<Node>, item: &ReadItem, mut decided: Option<Reading>, until: Instant) -> Outcome {
    let target = node.target_of(ChainId(item.chain.get())).ok_or(Status::NotServing)?;
    let chain_version = ChainVersion(item.chain_version.get());
    node.await_version(&target, chain_version).await;
    for _ in 0..ATTEMPTS {
        let reading = decided.take().unwrap_or_else(|| target.read(chain_version, item.chunk()));
        let at = match reading {
            Reading::Serve(at) => at,
            Reading::Refused(status) => return Err(status),
            Reading::Wait(waiting, woken) => match wait(node, &waiting, woken, until).await? {
                ReadWake::Serve(at) => at,
                ReadWake::Again => continue,
            },
        };
        let request = read_request(item, &at);
        let read = target.disk.engine().read_many(target.id, &[request]).await.pop();
        let read = read.unwrap_or(Err(EngineError::NotFound(request.chunk)));
        if let Some(outcome) = outcome(node, &target, at, &request, read) {
            return outcome;
        }
    }
    Err(Status::Busy)
}

/// Waits for the commit that makes a dirty chunk clean, and asks the tail when that takes long.
async fn wait(
    node: &Arc<Node>,
    waiting: &Waiting,
    mut woken: oneshot::Receiver<ReadWake>,
    until: Instant,
) -> Result<ReadWake, Status> {
    node.metrics.dirty_reads.inc();
    let mut patience = DIRTY_WAIT;
    loop {
        match timeout(patience, &mut woken).await {
            Ok(wake) => return Ok(wake.unwrap_or(ReadWake::Again)),
            Err(_) if Instant::now() >= until => return Err(Status::TimedOut),
            Err(_) => {
                node.metrics.tail_queries.inc();
                waiting.ask_tail(node);
                patience = (patience * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// The reply: what was read under a lease that holds now, statuses for the rest.
fn encode(node: &Arc<Node>, outcomes: Vec<Outcome>) -> (Answer, u64) {
    let now = node.clock.monotonic();
    let mut body = BytesMut::with_capacity(size_of::<ReadResult>() * outcomes.len() + 64);
    let mut crcs: Vec<u32> = Vec::new();
    let mut data: Vec<Buf> = Vec::with_capacity(outcomes.len());
    let mut bytes = 0;
    for outcome in outcomes {
        let fenced = outcome.and_then(|Done { target, at, data }| {
            at.open(|| target.may_answer(now)).ok_or(Status::NoLease)?;
            catena_rt::witness("answers", || vec![target.id.0]);
            data.ok_or(Status::NotFound)
        });
        match fenced {
            Ok(read) => {
                let result = ReadResult {
                    version: read.version.version.0.into(),
                    length: (read.data.len() as u32).into(),
                    chunk_length: read.chunk_length.into(),
                    crc_count: (read.crcs.len() as u32).into(),
                    status: (Status::Ok as u16).into(),
                    reserved: 0.into(),
                };
                body.put_slice(result.as_bytes());
                crcs.extend_from_slice(&read.crcs);
                bytes += read.data.len() as u64;
                data.push(read.data);
            }
            Err(status) => {
                if status != Status::NotFound {
                    node.metrics.failed(OpKind::Read, status);
                }
                body.put_slice(ReadResult::failed(status).as_bytes());
                data.push(Buf::empty());
            }
        }
    }
    frame::put_checksums(&mut body, &crcs);
    ((Status::Ok, body.freeze(), data), bytes)
}
