//! Space promised before an operation is forwarded (R8).

use std::fmt;
use std::sync::Arc;

use catena_proto::ids::{ChunkId, TargetId};

use crate::alloc::order_of;
use crate::core::Core;
use crate::error::{EngineError, Result};
use crate::format::{BLOCK_U64, blocks};
use crate::index::{Entry, Progress};
use crate::op::Op;
use crate::plan::{RunPlan, Shape, plan};
use crate::view::View;

/// Space set aside by [`crate::Engine::admit`]; given back when dropped unused.
pub struct Reservation {
    core: Arc<Core>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.core.state.lock().reserved -= self.bytes;
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

/// Checks an operation and sets aside what it needs at most.
pub fn admit(core: &Arc<Core>, target_id: TargetId, chunk: ChunkId, op: &Op) -> Result<Reservation> {
    let shape = Shape::of(op)?;
    let mut state = core.lock()?;
    let target = state.targets.get(&target_id).ok_or(EngineError::NoSuchTarget(target_id))?;
    let empty = Entry::default();
    let entry = target.chunks.get(&chunk).unwrap_or(&empty);
    let active = target.active.get(&chunk);
    let pendings = active.map_or(0, |active| active.pendings.len());
    let unplanned =
        active.is_some_and(|active| active.pendings.iter().any(|one| one.progress < Progress::Planned));
    let order = if matches!(op, Op::Spooled(_)) {
        // It has its space already.
        None
    } else if let (true, Shape::Write { end, .. }) = (unplanned, shape) {
        // What it will be staged on is not known yet: the worst case.
        Some(order_of(blocks(end.max(entry.written))))
    } else {
        let plan = plan(&View::new(entry, active, pendings), shape);
        match plan.run {
            RunPlan::New(_, least) => Some(least),
            _ => plan.park,
        }
    };
    let bytes = order.map_or(0, |order| BLOCK_U64 << order);
    if bytes > 0 {
        // What has been given up counts: it is free when the log says so, and stages wait for that.
        let on_hand = state.allocator.free_blocks() * BLOCK_U64;
        let wanted = bytes + state.reserved + core.options.reserve;
        if on_hand < wanted && core.free(&state) < wanted {
            return Err(core.no_space(&state, bytes, core.options.reserve));
        }
    }
    state.reserved += bytes;
    Ok(Reservation { core: core.clone(), bytes })
}
