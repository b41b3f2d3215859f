//! A metadata service with a flat namespace that settles lengths by what it is told, and the client on top of it and of a storage
//! cluster that does as it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_client::{Catena, ConnectOptions, Credentials, Parts};
use catena_meta_client::{Connector, Endpoint, MetaClient, Options, Reply, Request, Servers};
use catena_proto::ids::{ClientId, ClusterId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use parking_lot::Mutex;

#[path = "../../../storage/client/tests/fake/mod.rs"]
pub mod fake;

#[derive(Default)]
pub struct Names {
    pub files: BTreeMap<Vec<u8>, pb::Inode>,
    /// What writers told, oldest first.
    pub told: Vec<pb::SyncRequest>,
    /// Stats that were asked.
    pub stats: usize,
    /// So many of the next calls fail with this.
    pub failing: Option<(usize, Status)>,
}

struct Flat(Arc<Mutex<Names>>);

impl Connector for Flat {
    fn connect(&self, _address: &str) -> Result<Arc<dyn Endpoint>, Failure> {
        Ok(Arc::new(Flat(self.0.clone())))
    }
}

impl Names {
    fn by_inode(&mut self, inode: u64) -> Result<&mut pb::Inode, Failure> {
        self.files.values_mut().find(|file| file.id == inode).ok_or(Status::NotFound.into())
    }

    fn at(&mut self, at: Option<pb::At>) -> Result<&mut pb::Inode, Failure> {
        let at = at.unwrap_or_default();
        match at.path.is_empty() {
            true => self.by_inode(at.parent),
            false => self.files.get_mut(&at.path[..]).ok_or(Status::NotFound.into()),
        }
    }

    fn cut(inode: &mut pb::Inode, length: u64) {
        inode.truncate_epoch += u64::from(length < inode.length);
        inode.length = length;
    }

    fn serve(&mut self, request: Request) -> Result<Reply, Failure> {
        if let Request::Period(_) = request {
            return Ok(Reply::Period(pb::PeriodReply { period: 1, fresh_ms: 3_600_000 }));
        }
        if let Some((left, status)) = &mut self.failing
            && *left > 0
        {
            *left -= 1;
            return Err((*status).into());
        }
        match request {
            Request::Stat(request) => {
                self.stats += 1;
                Ok(Reply::Stat(pb::StatReply { inode: Some(self.at(request.at)?.clone()) }))
            }
            Request::Open(request) => {
                let path = request.at.clone().unwrap_or_default().path.to_vec();
                if !self.files.contains_key(&path) {
                    if !request.create {
                        return Err(Status::NotFound.into());
                    }
                    let layout = pb::Layout {
                        table: 1,
                        table_version: 1,
                        chunk_size: fake::CHUNK_SIZE,
                        stripe: 1,
                        seed: 1,
                    };
                    let inode = pb::Inode {
                        id: 9 + self.files.len() as u64,
                        r#type: pb::FileType::File as i32,
                        layout: Some(layout),
                        nlink: 1,
                        ..Default::default()
                    };
                    self.files.insert(path.clone(), inode);
                }
                let inode = self.at(request.at)?;
                if request.truncate {
                    Names::cut(inode, 0);
                }
                Ok(Reply::Open(pb::OpenReply { inode: Some(inode.clone()), created: false }))
            }
            Request::Sync(request) => {
                self.told.push(request.clone());
                let inode = self.by_inode(request.inode)?;
                if request.wrote && request.truncate_epoch == inode.truncate_epoch {
                    inode.length = inode.length.max(request.high_water);
                }
                Ok(Reply::Sync(pb::SyncReply { inode: Some(inode.clone()) }))
            }
            Request::Truncate(request) => {
                let length = request.length;
                let inode = self.at(request.at)?;
                Names::cut(inode, length);
                Ok(Reply::Truncate(pb::TruncateReply { inode: Some(inode.clone()) }))
            }
            other => Err(Failure::new(Status::Unsupported, other.name())),
        }
    }
}

#[async_trait]
impl Endpoint for Flat {
    async fn call(&self, request: Request, _deadline: Duration) -> Result<Reply, Failure> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.0.lock().serve(request)
    }
}

/// A client, the storage cluster and the namespace below it.
pub async fn world() -> (Catena, fake::Cluster, Arc<Mutex<Names>>) {
    let cluster = fake::Cluster::new().await;
    let names = Arc::new(Mutex::new(Names::default()));
    let options = Options { seed: Some(1), deadline: Duration::from_secs(5), ..Options::default() };
    let servers = Servers::Fixed(vec!["flat".into()]);
    let connector = Arc::new(Flat(names.clone()));
    let meta = MetaClient::with_connector(servers, connector, ClientId(77), options);
    let storage = cluster.client.clone();
    let parts = Parts { cluster: ClusterId(7), storage, meta, mgmtd: None, session: None };
    let options = ConnectOptions {
        credentials: Some(Credentials::root()),
        deadline: Duration::from_secs(5),
        ..ConnectOptions::default()
    };
    (Catena::from_parts(parts, &options), cluster, names)
}
