//! The layout of a new file: what the caller asks for, then what the directories above say, then the defaults.

use catena_proto::ids::{InodeId, TableId};
use catena_proto::layout::{Layout, LayoutError, check_chunk_size};
use catena_proto::pb;
use catena_proto::routing::{RoutingInfo, Table};
use catena_proto::status::Status;

use crate::error::{OpError, refuse};
use crate::resolve::existing;
use crate::schema::{Inode, ROOT};
use crate::tx::Tx;

/// What is known so far; zero is "not said".
#[derive(Clone, Copy, Default)]
struct Wish {
    table: u32,
    table_version: u32,
    chunk_size: u32,
    stripe: u32,
}

impl Wish {
    fn add(&mut self, said: &pb::Layout) {
        if self.table == 0 {
            // A version belongs to the table that is named with it.
            (self.table, self.table_version) = (said.table, said.table_version);
        }
        if self.chunk_size == 0 {
            self.chunk_size = said.chunk_size;
        }
        if self.stripe == 0 {
            self.stripe = said.stripe;
        }
    }
    fn complete(&self) -> bool {
        self.table != 0 && self.chunk_size != 0 && self.stripe != 0
    }
}

/// The whole layout of a file that is made in `dir`.
pub(crate) async fn for_new_file(
    tx: &mut Tx<'_>,
    (dir, parent): (InodeId, &Inode),
    asked: Option<&pb::Layout>,
) -> Result<Layout, OpError> {
    let mut wish = Wish::default();
    if let Some(asked) = asked {
        wish.add(asked);
    }
    if let Some(said) = &parent.layout {
        wish.add(said);
    }
    let (mut here, mut up) = (dir, InodeId(parent.parent));
    while !wish.complete() && here != ROOT {
        let inode = existing(tx, up).await?;
        if let Some(said) = &inode.layout {
            wish.add(said);
        }
        (here, up) = (up, InodeId(inode.parent));
    }
    let named_table = wish.table != 0;
    let named_stripe = wish.stripe != 0;
    let defaults = tx.cx.layout;
    wish.add(&pb::Layout {
        table: defaults.table,
        table_version: 0,
        chunk_size: defaults.chunk_size,
        stripe: defaults.stripe,
        seed: 0,
    });
    let routing = tx.cx.routing.current();
    let table = find_table(&routing, wish.table, wish.table_version, named_table)?;
    let chains = table.chains.len() as u32;
    if !named_stripe {
        wish.stripe = wish.stripe.min(chains);
    }
    check(&wish.into(), chains)?;
    let seed = match asked.map_or(0, |asked| asked.seed) {
        0 => tx.cx.random(),
        seed => seed,
    };
    Ok(Layout {
        table: TableId(wish.table),
        table_version: table.version,
        chunk_size: wish.chunk_size,
        stripe: wish.stripe,
        seed,
    })
}

impl From<Wish> for pb::Layout {
    fn from(wish: Wish) -> pb::Layout {
        pb::Layout {
            table: wish.table,
            table_version: wish.table_version,
            chunk_size: wish.chunk_size,
            stripe: wish.stripe,
            seed: 0,
        }
    }
}

/// What may be said on a directory: every field zero or possible.
pub(crate) fn for_directory(routing: &RoutingInfo, said: &pb::Layout) -> Result<pb::Layout, OpError> {
    if said.table == 0 && said.table_version != 0 {
        return refuse(Status::Invalid, "the layout names a table version but no table");
    }
    if said.table != 0 {
        let table = find_table(routing, said.table, said.table_version, true)?;
        check(said, table.chains.len() as u32)?;
    } else {
        check(said, u32::MAX)?;
    }
    Ok(pb::Layout { seed: 0, ..*said })
}

/// Refuses sizes that are said and cannot be.
fn check(said: &pb::Layout, chains: u32) -> Result<(), OpError> {
    if said.chunk_size != 0 {
        check_chunk_size(said.chunk_size).or_else(|error| refuse(Status::Invalid, error.to_string()))?;
    }
    if said.stripe > chains {
        let error = LayoutError::Stripe { stripe: said.stripe, chains };
        return refuse(Status::Invalid, error.to_string());
    }
    Ok(())
}

fn find_table(routing: &RoutingInfo, table: u32, version: u32, named: bool) -> Result<&Table, OpError> {
    let id = TableId(table);
    let found = match version {
        0 => routing.newest_table(id),
        version => routing.tables.get(&(id, version)),
    };
    match found {
        Some(table) if !table.chains.is_empty() => Ok(table),
        _ if named && version != 0 => {
            refuse(Status::Invalid, format!("chain table {table} has no version {version}"))
        }
        _ if named => refuse(Status::Invalid, format!("there is no chain table {table}")),
        // Not the caller's mistake: the cluster is being set up, or its routing information has not come yet.
        _ => refuse(
            Status::Busy,
            format!(
                "there is no chain table {table} yet, which files are put on by default: make it with `catena admin tables create`"
            ),
        ),
    }
}
