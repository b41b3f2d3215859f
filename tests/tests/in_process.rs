//! Files in a whole cluster: what was written is read, through every door, and lengths are what they should be.

use std::sync::Arc;
use std::time::Duration;

use catena_client::transfer::{self, Crc, TransferOptions};
use catena_client::{
    Catena, File, LayoutChoice, OpenOptions, ReadInto, ReadRequest, RenameMode, Status, WriteRequest,
};
use catena_proto::ids::{ChunkId, InodeId};
use catena_storage_client::Replica;
use catena_tests::{Cluster, Shape, block_on};
use futures_util::future::join_all;

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; length];
    for part in bytes.chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
    }
    bytes
}

/// Runs a test in a cluster with a client.
fn with_cluster<F: Future<Output = ()>>(test: impl FnOnce(Arc<Cluster>, Catena) -> F) {
    block_on(async {
        let cluster = Arc::new(Cluster::start(Shape::default()).await);
        let catena = cluster.client().await;
        test(cluster.clone(), catena).await;
        if let Some(cluster) = Arc::into_inner(cluster) {
            cluster.stop().await;
        }
    });
}

fn small_chunks() -> OpenOptions {
    let layout = LayoutChoice { chunk_size: Some(64 << 10), ..LayoutChoice::default() };
    OpenOptions::new().read(true).write(true).create(true).layout(layout)
}

async fn read_all(file: &File, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    let read = file.read_at(0, &mut bytes).await.unwrap();
    bytes.truncate(read);
    bytes
}

#[test]
fn what_is_written_is_read_by_everyone_through_every_door() {
    with_cluster(|cluster, catena| async move {
        let bytes = pattern(5_000_000, 1);
        let file = catena.create("/file").await.unwrap();
        file.write_at(0, &bytes).await.unwrap();
        assert_eq!(read_all(&file, bytes.len() + 10).await, bytes, "by the writer before it closes");
        file.close().await.unwrap();

        let other = cluster.client().await;
        let file = other.open("/file").await.unwrap();
        assert_eq!(file.len().await.unwrap(), 5_000_000);
        assert_eq!(read_all(&file, bytes.len()).await, bytes);
        let data = file.read_buf_at(1_000_001, 2_500_000).await.unwrap();
        assert_eq!(data.to_vec(), bytes[1_000_001..3_500_001]);
        let requests: Vec<_> =
            (0..200).map(|n| ReadRequest { file: &file, offset: n * 24_989, length: 4096 }).collect();
        for (request, data) in requests.iter().zip(other.read_batch(&requests).await) {
            let from = request.offset as usize;
            assert_eq!(data.unwrap().to_vec(), bytes[from..(from + 4096).min(bytes.len())]);
        }
        let mut memory = vec![vec![0; 10_000]; 3];
        let mut items: Vec<_> = memory
            .iter_mut()
            .enumerate()
            .map(|(n, to)| ReadInto { file: &file, offset: n as u64 * 2_499_000, to })
            .collect();
        let lengths: Vec<_> = other.read_into(&mut items).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(lengths, [10_000, 10_000, 2_000]);
        assert_eq!(memory[1], bytes[2_499_000..2_509_000]);
        let mut reader = file.reader(0);
        let mut crc = Crc::default();
        while let Some(chunk) = reader.next().await.unwrap() {
            crc.update(chunk.data());
        }
        let mut expected = Crc::default();
        expected.update(&bytes);
        assert_eq!(crc, expected);
        let report = file.compare_replicas().await.unwrap();
        assert_eq!((report.chunks, report.bytes, report.fewest), (5, 5_000_000, 3));
        assert_eq!(report.differing, []);
        assert_eq!(report.copies.values().sum::<u64>(), 15);
    });
}

#[test]
fn reads_end_at_the_end_and_holes_are_zeros() {
    with_cluster(|_, catena| async move {
        let file = small_chunks().open(&catena, "/sparse").await.unwrap();
        file.write_at(1_000_000, b"island").await.unwrap();
        file.write_at(10, b"coast").await.unwrap();
        let mut expected = vec![0; 1_000_006];
        expected[10..15].copy_from_slice(b"coast");
        expected[1_000_000..].copy_from_slice(b"island");
        assert!(read_all(&file, 2_000_000).await == expected);
        let data = file.read_buf_at(5, 999_999).await.unwrap();
        assert!(data.to_vec() == expected[5..1_000_004]);
        assert_eq!(file.read_at(1_000_006, &mut [0; 9]).await.unwrap(), 0);
        assert_eq!(file.read_at(u64::MAX - 3, &mut [0; 9]).await.unwrap(), 0);
        assert_eq!(file.read_at(0, &mut []).await.unwrap(), 0);
        assert_eq!(file.read_exact_at(1_000_000, &mut [0; 7]).await.unwrap_err().status(), Status::Range);
        file.close().await.unwrap();
        let stored = catena.open("/sparse").await.unwrap().stored_chunks(false).await.unwrap();
        let indices: Vec<_> = stored.iter().map(|chunk| (chunk.index, chunk.length)).collect();
        assert_eq!(indices, [(0, 15), (15, 1_000_006 - 15 * 65_536)]);
    });
}

#[test]
fn bad_ranges_are_refused_and_change_nothing() {
    with_cluster(|_, catena| async move {
        let file = catena.create("/file").await.unwrap();
        file.write_at(0, b"kept").await.unwrap();
        for offset in [u64::MAX, i64::MAX as u64, (1 << 52) - 1] {
            assert_eq!(
                file.write_at(offset, b"xy").await.unwrap_err().status(),
                Status::TooLarge,
                "{offset}"
            );
        }
        file.write_at(u64::MAX, b"").await.unwrap_err();
        file.write_at(2, b"").await.unwrap();
        assert_eq!(file.truncate(u64::MAX).await.unwrap_err().status(), Status::TooLarge);
        let overlapping = [
            WriteRequest { file: &file, offset: 100, data: &[1; 10] },
            WriteRequest { file: &file, offset: 109, data: &[2; 10] },
            WriteRequest { file: &file, offset: 4, data: &[3; 4] },
        ];
        let outcomes: Vec<_> =
            catena.write_batch(&overlapping).await.into_iter().map(|o| o.map_err(|e| e.status())).collect();
        assert_eq!(outcomes, [Err(Status::Invalid), Err(Status::Invalid), Ok(())]);
        assert_eq!(read_all(&file, 100).await, b"kept\x03\x03\x03\x03");
        let reader = catena.open("/file").await.unwrap();
        assert_eq!(reader.write_at(0, b"x").await.unwrap_err().status(), Status::Invalid);
        file.close().await.unwrap();
        assert_eq!(file.write_at(0, b"x").await.unwrap_err().status(), Status::StaleHandle);
        file.close().await.unwrap();
        let both = OpenOptions::new().append(true).truncate(true).open(&catena, "/file").await;
        assert_eq!(both.unwrap_err().status(), Status::Invalid);
        assert_eq!(catena.open("/").await.unwrap_err().status(), Status::IsDirectory);
        let missing = catena.open("/nothing").await.unwrap_err();
        assert_eq!(missing.status(), Status::NotFound);
        assert!(missing.to_string().contains("/nothing"), "{missing}");
    });
}

#[test]
fn appends_of_many_tasks_never_overlap() {
    with_cluster(|cluster, catena| async move {
        let options = small_chunks();
        let first = options.open(&catena, "/log").await.unwrap();
        let handle = OpenOptions::new().append(true).open(&catena, "/log").await.unwrap();
        assert_eq!(handle.write_at(0, b"x").await.unwrap_err().status(), Status::Invalid);
        let tasks = (0..40_u8).map(|n| {
            let file = if n % 2 == 0 { first.clone() } else { handle.clone() };
            tokio::spawn(async move { file.append(&[n + 1; 7000]).await.unwrap() })
        });
        let mut places: Vec<u64> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
        places.sort_unstable();
        assert_eq!(places, (0..40).map(|n| n * 7000).collect::<Vec<u64>>());
        first.close().await.unwrap();
        handle.close().await.unwrap();
        let other = cluster.client().await;
        let bytes = other.read("/log").await.unwrap();
        assert_eq!(bytes.len(), 280_000);
        let mut seen: Vec<u8> = bytes
            .chunks(7000)
            .map(|record| {
                assert!(record.iter().all(|byte| *byte == record[0]));
                record[0]
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=40).collect::<Vec<u8>>());
    });
}

#[test]
fn cutting_and_lengthening_leave_zeros_and_nothing_old() {
    with_cluster(|cluster, catena| async move {
        let bytes = pattern(400_000, 2);
        let file = small_chunks().open(&catena, "/file").await.unwrap();
        file.write_at(0, &bytes).await.unwrap();
        for (cut, long) in [(100_000, 250_000), (65_536, 65_537), (5, 140_000), (0, 10)] {
            file.truncate(cut).await.unwrap();
            assert_eq!(file.len().await.unwrap(), cut);
            file.truncate(long).await.unwrap();
            let now = read_all(&file, 500_000).await;
            assert_eq!(now.len() as u64, long);
            assert!(now[..cut as usize] == bytes[..cut as usize]);
            assert!(now[cut as usize..].iter().all(|byte| *byte == 0), "old bytes came back at {cut}");
            file.write_at(0, &bytes).await.unwrap();
        }
        // Cut by someone else while it is open here.
        let other = cluster.client().await;
        file.sync().await.unwrap();
        other.truncate("/file", 1000).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 1000);
        assert_eq!(read_all(&file, 5000).await.len(), 1000);
        file.write_at(2000, b"after the cut").await.unwrap();
        file.close().await.unwrap();
        assert_eq!(other.stat("/file").await.unwrap().length, 2013);
        let again = catena.create("/file").await.unwrap();
        assert_eq!(again.len().await.unwrap(), 0);
        again.write_at(50, b"x").await.unwrap();
        assert!(read_all(&again, 100).await == [&[0; 50][..], b"x"].concat());
    });
}

#[test]
fn many_tasks_write_one_file_and_the_length_is_exact() {
    with_cluster(|cluster, catena| async move {
        let file = small_chunks().open(&catena, "/shared").await.unwrap();
        let bytes = Arc::new(pattern(3_000_000, 3));
        let part = 100_000;
        let tasks = (0..30).map(|n| {
            let (file, bytes) = (file.clone(), bytes.clone());
            tokio::spawn(async move {
                let from = (n * 7 % 30) * part;
                file.write_at(from as u64, &bytes[from..from + part]).await.unwrap();
            })
        });
        join_all(tasks).await.into_iter().for_each(Result::unwrap);
        // A second handle, dropped without being closed.
        let tail = OpenOptions::new().write(true).open(&catena, "/shared").await.unwrap();
        tail.write_at(3_000_000, b"tail").await.unwrap();
        drop(tail);
        file.close().await.unwrap();
        let other = cluster.client().await;
        let closed = async {
            while other.stat("/shared").await.unwrap().length != 3_000_004 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("a dropped handle is closed");
        let read = other.read("/shared").await.unwrap();
        assert!(read[..3_000_000] == bytes[..] && &read[3_000_000..] == b"tail");
    });
}

#[test]
fn pool_buffers_and_streams_go_in_and_out() {
    with_cluster(|_, catena| async move {
        let bytes = pattern(9_000_000, 4);
        let file = catena.create("/bufs").await.unwrap();
        let mut offset = 0;
        for part in bytes.chunks(3_000_000) {
            let mut buf = catena.alloc_buf(part.len()).await.unwrap();
            buf.copy_from_slice(part);
            file.write_buf_at(offset, buf.freeze()).await.unwrap();
            offset += part.len() as u64;
        }
        let mut buf = catena.alloc_buf(5).await.unwrap();
        buf.copy_from_slice(b"extra");
        assert_eq!(file.append_buf(buf.freeze()).await.unwrap(), 9_000_000);
        let mut writer = file.writer(9_000_005);
        for part in bytes.chunks(777_777) {
            writer.write(part).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap(), 9_000_000);
        file.close().await.unwrap();
        let read = catena.read("/bufs").await.unwrap();
        assert!(read == [&bytes[..], b"extra", &bytes[..]].concat());
        assert_eq!(catena.pool().stats().classes[0].used, 0, "nothing is kept");
    });
}

#[test]
fn files_are_put_and_got_and_checked_end_to_end() {
    with_cluster(|_, catena| async move {
        let here = tempfile::tempdir().unwrap();
        let (source, target) = (here.path().join("source"), here.path().join("target"));
        for length in [0, 1, 4096, 1_048_576, 5_000_003] {
            let bytes = pattern(length, length as u64);
            std::fs::write(&source, &bytes).unwrap();
            let mut crc = Crc::default();
            crc.update(&bytes);
            let file = catena.create("/put").await.unwrap();
            let put = transfer::put_file(&source, &file, &TransferOptions::default()).await.unwrap();
            assert_eq!((put.bytes, put.crc32c, put.verified), (length as u64, crc.value(), true));
            file.close().await.unwrap();
            let file = catena.open("/put").await.unwrap();
            let got = transfer::get_file(&file, &target, &TransferOptions::default()).await.unwrap();
            assert_eq!(got, put);
            assert!(std::fs::read(&target).unwrap() == bytes);
            let mut out = Vec::new();
            transfer::get_writer(&file, &mut out, &TransferOptions::default()).await.unwrap();
            assert!(out == bytes);

            let streamed = catena.create("/streamed").await.unwrap();
            let put = transfer::put_reader(&bytes[..], &streamed, &TransferOptions::default()).await.unwrap();
            assert_eq!((put.bytes, put.crc32c), (length as u64, crc.value()));
            let streamed = catena.create("/streamed").await.unwrap();
            let input = std::io::Cursor::new(bytes.clone());
            transfer::put_blocking(input, &streamed, &TransferOptions::default()).await.unwrap();
            streamed.close().await.unwrap();
            assert!(catena.read("/streamed").await.unwrap() == bytes);
        }
        assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 2, "no drafts are left");
        let missing = catena.create("/x").await.unwrap();
        let error = transfer::put_file(here.path().join("no"), &missing, &TransferOptions::default()).await;
        assert_eq!(error.unwrap_err().status(), Status::NotFound);
    });
}

/// Chunks in all chains, of whatever file.
async fn stored(catena: &Catena) -> usize {
    let (all, from) = (InodeId(0)..=InodeId(u64::MAX), ChunkId::default());
    let (storage, mut count) = (catena.storage(), 0);
    for &chain in catena.routing().current().chains.keys() {
        let deadline = storage.deadline();
        let page = storage.list_chunks(chain, all.clone(), from, 1024, Replica::Any, false, deadline).await;
        count += page.unwrap().len();
    }
    count
}

#[test]
fn names_move_and_removed_files_give_their_space_back() {
    with_cluster(|_, catena| async move {
        catena.mkdir_all("/a/b", 0o755).await.unwrap();
        let bytes = pattern(2_000_000, 5);
        catena.write("/a/b/one", &bytes).await.unwrap();
        catena.write("/a/two", b"two").await.unwrap();
        let taken = catena.rename("/a/two", "/a/b/one", RenameMode::Noreplace).await.unwrap_err();
        assert_eq!(taken.status(), Status::Exists);
        catena.rename("/a/two", "/a/b/one", RenameMode::Exchange).await.unwrap();
        assert_eq!(catena.read("/a/b/one").await.unwrap(), b"two");
        assert!(catena.read("/a/two").await.unwrap() == bytes);
        catena.link("/a/two", "/a/hard").await.unwrap();
        catena.symlink("two", "/a/soft").await.unwrap();
        assert_eq!(catena.stat("/a/soft").await.unwrap().nlink, 2);
        assert_eq!(&catena.readlink("/a/soft").await.unwrap()[..], b"two");
        let names: Vec<_> = catena.read_dir("/a", true).page_size(2).collect().await.unwrap();
        let names: Vec<_> = names.iter().map(|entry| entry.name_text().into_owned()).collect();
        assert_eq!(names, ["b", "hard", "soft", "two"]);
        let large = LayoutChoice { chunk_size: Some(4 << 20), ..LayoutChoice::default() };
        catena.set_layout("/a", large).await.unwrap();
        assert_eq!(catena.layout("/a").await.unwrap(), large);
        catena.write("/a/large", b"").await.unwrap();
        assert_eq!(catena.stat("/a/large").await.unwrap().layout.unwrap().chunk_size, 4 << 20);
        catena.remove("/a/large").await.unwrap();
        catena.set_layout("/a", LayoutChoice::default()).await.unwrap();
        assert_eq!(catena.layout("/a").await.unwrap(), LayoutChoice::default());
        let usage = catena.usage("/a").await.unwrap();
        assert_eq!((usage.bytes, usage.directories), (2_000_003, 2));

        assert!(stored(&catena).await > 0);
        catena.remove("/a/two").await.unwrap();
        assert!(catena.read("/a/hard").await.unwrap() == bytes, "the other name keeps it");
        catena.remove_all("/a").await.unwrap();
        assert_eq!(catena.stat("/a").await.unwrap_err().status(), Status::NotFound);
        let gone = async {
            while stored(&catena).await > 0 || catena.statfs().await.unwrap().reclaim_files > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("removed files are reclaimed");
    });
}

#[test]
fn a_file_behaves_as_an_array_of_bytes_whatever_is_done_to_it() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    with_cluster(|cluster, catena| async move {
        let mut rng = StdRng::seed_from_u64(42);
        let other = cluster.client().await;
        let mut model: Vec<u8> = Vec::new();
        let mut file = small_chunks().open(&catena, "/model").await.unwrap();
        let second = OpenOptions::new().read(true).write(true).open(&catena, "/model").await.unwrap();
        for step in 0..400_u32 {
            let handle = if rng.random_bool(0.3) { &second } else { &file };
            let offset = rng.random_range(0..400_000_usize);
            let length = [1, 100, 4096, 70_000, 200_000][rng.random_range(0..5)];
            match rng.random_range(0..10) {
                0..=3 => {
                    let bytes = pattern(length, u64::from(step));
                    let offset = if rng.random_bool(0.3) { offset / 4096 * 4096 } else { offset };
                    handle.write_at(offset as u64, &bytes).await.unwrap();
                    model.resize(model.len().max(offset + length), 0);
                    model[offset..offset + length].copy_from_slice(&bytes);
                }
                4 => {
                    let bytes = pattern(length, u64::from(step));
                    assert_eq!(handle.append(&bytes).await.unwrap(), model.len() as u64);
                    model.extend(bytes);
                }
                5 => {
                    handle.truncate(offset as u64).await.unwrap();
                    model.resize(offset, 0);
                }
                6 => {
                    handle.sync().await.unwrap();
                    file.close().await.unwrap();
                    file = OpenOptions::new().read(true).write(true).open(&catena, "/model").await.unwrap();
                }
                7 => {
                    file.sync().await.unwrap();
                    second.sync().await.unwrap();
                    assert!(other.read("/model").await.unwrap() == model, "elsewhere, step {step}");
                }
                _ => {
                    let mut bytes = vec![0xee; length];
                    let read = handle.read_at(offset as u64, &mut bytes).await.unwrap();
                    let expected = &model[offset.min(model.len())..(offset + length).min(model.len())];
                    assert!(bytes[..read] == *expected, "step {step}: {length} bytes at {offset}");
                }
            }
        }
        file.close().await.unwrap();
        second.close().await.unwrap();
        assert!(other.read("/model").await.unwrap() == model);
        let report = other.open("/model").await.unwrap().compare_replicas().await.unwrap();
        assert_eq!(report.differing, []);
    });
}

#[test]
fn reads_and_writes_go_on_while_a_node_leaves_and_returns() {
    block_on(async {
        let mut cluster = Cluster::start(Shape::default()).await;
        let catena = cluster.client().await;
        let bytes = pattern(3_000_000, 6);
        let file = small_chunks().open(&catena, "/file").await.unwrap();
        file.write_at(0, &bytes).await.unwrap();
        cluster.stop_node(1).await;
        assert!(read_all(&file, 3_000_000).await == bytes);
        let newer = pattern(1_500_000, 7);
        file.write_at(500_000, &newer).await.unwrap();
        cluster.start_node(1).await;
        cluster.settle().await;
        let mut expected = bytes;
        expected[500_000..2_000_000].copy_from_slice(&newer);
        assert!(read_all(&file, 3_000_000).await == expected);
        file.sync().await.unwrap();
        let report = file.compare_replicas().await.unwrap();
        assert_eq!((report.fewest, report.differing), (3, vec![]));
        drop(file);
        cluster.stop().await;
    });
}
