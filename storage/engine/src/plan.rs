//! Where a version's bytes go: a function of the chunk as it is and the operation.
//!
//! - Nothing of the old contents stays: a new run.
//! - Behind everything that any version or reader holds: in place, the shared last block included.
//! - Over what some version holds: up to [`LOGGED`] blocks ride in the log record; more are *parked* in a run of their own, or, when that
//!   would touch half the chunk, the chunk is written anew. Logged and parked blocks are applied once committed.

use std::ops::Range;

use catena_proto::layout::MAX_IO;

use crate::alloc::{Run, order_of};
use crate::error::EngineError;
use crate::format::{BLOCK_U32, blocks};
use crate::op::{MAX_CHUNK, Op};
use crate::view::View;

/// Most overwritten blocks that ride in a log record.
pub const LOGGED: u32 = 16;
/// A first write at least this long is taken for the beginning of a long chunk.
const LONG: u32 = 1 << 20;

/// An operation without its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Write {
        start: u32,
        end: u32,
        chunk_size: u32,
    },
    Truncate(u32),
    Extend(u32),
    Remove,
    /// Length, and bytes of it that are given.
    Replace(u32, u32),
}

impl Shape {
    /// Checks an operation.
    pub fn of(op: &Op) -> Result<Shape, EngineError> {
        fn invalid<T>(what: &'static str) -> Result<T, EngineError> {
            Err(EngineError::Invalid { what })
        }
        let length =
            |length: u32| if length > MAX_CHUNK { invalid("length: beyond 64 MiB") } else { Ok(length) };
        match op {
            Op::Write { offset, data, crcs, chunk_size } => {
                let end = u64::from(*offset) + data.len() as u64;
                if data.is_empty() {
                    return invalid("write: no data");
                }
                if !chunk_size.is_power_of_two() || !(64 << 10..=MAX_CHUNK).contains(chunk_size) {
                    return invalid("chunk size: not a power of two between 64 KiB and 64 MiB");
                }
                if end > u64::from(*chunk_size) {
                    return invalid("write: reaches beyond the chunk");
                }
                if (*offset % BLOCK_U32) as usize + data.len() > MAX_IO as usize {
                    return invalid("write: longer than 4 MiB in whole blocks");
                }
                if crcs.len() != catena_proto::checksum::piece_count(*offset, data.len()) {
                    return invalid("write: one checksum for each piece is needed");
                }
                Ok(Shape::Write { start: *offset, end: end as u32, chunk_size: *chunk_size })
            }
            Op::Truncate { length: to } => length(*to).map(Shape::Truncate),
            Op::Extend { length: to } => length(*to).map(Shape::Extend),
            Op::Remove => Ok(Shape::Remove),
            Op::Replace { length: to, data, crcs } => {
                let to = length(*to)?;
                let given: u64 = data.iter().map(|part| part.len() as u64).sum();
                let whole =
                    data.iter().rev().skip(1).all(|part| part.len().is_multiple_of(BLOCK_U32 as usize));
                if given > u64::from(to) || !whole {
                    return invalid("replace: parts beyond the length, or not whole blocks");
                }
                if crcs.len() != blocks(given as u32) as usize {
                    return invalid("replace: one checksum for each block is needed");
                }
                Ok(Shape::Replace(to, given as u32))
            }
            Op::Spooled(spool) => Ok(Shape::Replace(spool.length(), spool.length())),
        }
    }
}

/// Which run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunPlan {
    None,
    Keep(Run),
    /// Of this class, or, if there is no room, of the second.
    New(u8, u8),
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub length: u32,
    pub written: u32,
    pub tombstone: bool,
    pub run: RunPlan,
    /// Blocks to write in the run,
    pub place: Range<u32>,
    /// those among them that are copied as they are from the old contents.
    pub copy: [Range<u32>; 2],
    /// Blocks that some version holds.
    pub over: Range<u32>,
    /// They go to a run of this class, not into the log.
    pub park: Option<u8>,
    /// The block that is cut.
    pub resum: Option<u32>,
}

/// Plans an operation on top of a version.
pub fn plan(view: &View<'_>, shape: Shape) -> Plan {
    let keep = || view.run().map_or(RunPlan::None, RunPlan::Keep);
    let unchanged = Plan {
        length: view.length(),
        written: view.written(),
        tombstone: false,
        run: keep(),
        place: 0..0,
        copy: [0..0, 0..0],
        over: 0..0,
        park: None,
        resum: None,
    };
    match shape {
        Shape::Remove => Plan { length: 0, written: 0, tombstone: true, run: RunPlan::None, ..unchanged },
        Shape::Extend(length) => Plan { length: length.max(view.length()), ..unchanged },
        Shape::Truncate(0) => Plan { length: 0, written: 0, run: RunPlan::None, ..unchanged },
        Shape::Truncate(length) if length < view.written() => {
            let cut = (!length.is_multiple_of(BLOCK_U32)).then_some(length / BLOCK_U32);
            Plan { length, written: length, resum: cut, ..unchanged }
        }
        Shape::Truncate(length) => Plan { length, ..unchanged },
        Shape::Replace(length, written) => {
            let count = blocks(written);
            let order = order_of(count);
            let run = if count == 0 { RunPlan::None } else { RunPlan::New(order, order) };
            Plan { length, written, run, place: 0..count, ..unchanged }
        }
        Shape::Write { start, end, chunk_size } => write(view, start, end, chunk_size, unchanged),
    }
}

fn write(view: &View<'_>, offset: u32, end: u32, chunk_size: u32, unchanged: Plan) -> Plan {
    let before = view.written();
    let written = before.max(end);
    let count = blocks(written);
    let least = order_of(count);
    // A gap is written as zeros.
    let start = offset.min(before);
    let (first, last) = (start / BLOCK_U32, blocks(end));
    let largest = order_of(blocks(chunk_size)).max(least);
    let plan = Plan { length: view.length().max(end), written, ..unchanged };
    let Some(run) = view.run() else {
        // Whoever writes a megabyte and does not fill the chunk goes on.
        let order = if end - offset >= LONG { (least + 2).min(largest) } else { least };
        return Plan { run: RunPlan::New(order, least), place: 0..count, ..plan };
    };
    if start == 0 && end >= before {
        return Plan { run: RunPlan::New(least, least), place: 0..count, ..plan };
    }
    let copy = [0..first, last..blocks(before).max(last)];
    if run.blocks() < count {
        let order = least.max(run.order + 2).min(largest);
        return Plan { run: RunPlan::New(order, least), place: 0..count, copy, ..plan };
    }
    let floor = view.floor();
    let in_tail = !floor.is_multiple_of(BLOCK_U32) && start == floor && !view.is_overlaid(first);
    let from = if in_tail { first } else { first.max(blocks(floor)) };
    let over = first..last.min(from);
    let place = from..last.max(from);
    let overwritten = over.end.saturating_sub(over.start);
    if overwritten > LOGGED && overwritten * 2 >= count {
        return Plan { run: RunPlan::New(run.order, least), place: 0..count, copy, ..plan };
    }
    let park = (overwritten > LOGGED).then(|| order_of(overwritten));
    Plan { place, over, park, ..plan }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Active, Entry, Overlay, Parts, Pending, Progress};
    use catena_proto::ids::{ChainVersion, ChunkVersion, VersionId};

    const RUN: Run = Run { start: 0, order: 8 };

    fn id(version: u64) -> VersionId {
        VersionId { version: ChunkVersion(version), assigned: ChainVersion(1) }
    }
    fn base(written: u32) -> Entry {
        Entry::new(id(1), written, written, Some(RUN), false)
    }
    fn planned(entry: &Entry, start: u32, end: u32) -> Plan {
        plan(&View::new(entry, None, 0), Shape::Write { start, end, chunk_size: 1 << 20 })
    }

    #[test]
    fn new_chunks_take_the_class_that_fits() {
        let empty = Entry::default();
        assert_eq!(planned(&empty, 0, 3000).run, RunPlan::New(0, 0));
        assert_eq!(planned(&empty, 0, 4097).run, RunPlan::New(1, 1));
        assert_eq!(planned(&empty, 5000, 6000).place, 0..2);
        let long =
            plan(&View::new(&empty, None, 0), Shape::Write { start: 0, end: 1 << 20, chunk_size: 64 << 20 });
        assert_eq!(long.run, RunPlan::New(10, 8));
    }

    #[test]
    fn appends_go_in_place_with_the_block_they_share() {
        let plan = planned(&base(5000), 5000, 9000);
        assert_eq!((plan.run, plan.place, plan.over), (RunPlan::Keep(RUN), 1..3, 1..1));
        // With a gap.
        let plan = planned(&base(5000), 20000, 20001);
        assert_eq!((plan.place, plan.over.is_empty()), (1..5, true));
        // At a block's boundary.
        let plan = planned(&base(8192), 8192, 9000);
        assert_eq!((plan.place, plan.over.is_empty()), (2..3, true));
    }

    #[test]
    fn overwrites_are_logged_parked_or_written_anew_by_size() {
        let full = base(1 << 20);
        let small = planned(&full, 4096, 8192);
        assert_eq!((small.over, small.park, small.place.is_empty()), (1..2, None, true));
        let large = planned(&full, 0, 100 << 10);
        assert_eq!((large.over, large.park), (0..25, Some(5)));
        let half = planned(&full, 4096, 600 << 10);
        assert_eq!((half.run, half.copy, half.place), (RunPlan::New(8, 8), [0..1, 150..256], 0..256));
        let whole = planned(&full, 0, 1 << 20);
        assert_eq!((whole.run, whole.copy), (RunPlan::New(8, 8), [0..0, 0..0]));
        // Half over the end.
        let across = planned(&base(8192), 4096, 20000);
        assert_eq!((across.over, across.place), (1..2, 2..5));
    }

    #[test]
    fn what_a_pending_cut_off_is_still_the_bases() {
        let entry = base(10_000);
        let mut active = Active::default();
        let parts = Parts { length: 100, written: 100, run: Some(RUN), ..Parts::default() };
        active.pendings.push_back(Pending {
            id: id(2),
            tag: None,
            op: crate::format::record::OpKind::Truncate,
            rebase: false,
            renews: false,
            committed: false,
            progress: Progress::Logged(1),
            ticket: 1,
            parts,
        });
        let view = View::new(&entry, Some(&active), 1);
        assert_eq!(view.floor(), 10_000);
        let plan = plan(&view, Shape::Write { start: 9000, end: 13_000, chunk_size: 1 << 20 });
        assert_eq!((plan.over, plan.place), (0..3, 3..4));
    }

    #[test]
    fn an_overlaid_last_block_is_not_appended_to_in_place() {
        let entry = base(5000);
        let mut active = Active::default();
        let gauge = std::sync::Arc::default();
        let block = crate::index::Block::new(Box::new([0; 4096]), &gauge);
        active.overlays.insert(1, Overlay { image: crate::index::Image::Memory(block), crc: 0, origin: 1 });
        let view = View::new(&entry, Some(&active), 0);
        let plan = plan(&view, Shape::Write { start: 5000, end: 9000, chunk_size: 1 << 20 });
        assert_eq!((plan.over, plan.place), (1..2, 2..3));
    }

    #[test]
    fn growth_is_by_steps_of_four_and_copies_what_was() {
        let entry = Entry::new(id(1), 8192, 8192, Some(Run { start: 0, order: 1 }), false);
        let plan = planned(&entry, 8192, 12288);
        assert_eq!((plan.run, plan.copy[0].clone(), plan.place), (RunPlan::New(3, 2), 0..2, 0..3));
    }
}
