//! Open files against services that do as they are told: what is settled when, and what happens when something goes wrong in between.

mod namespace;

use std::time::Duration;

use catena_client::transfer::{self, TransferOptions};
use catena_client::{Catena, File, ReadRequest, Status};
use namespace::fake::{CHUNK_SIZE, Trick, chunk, pattern};
use namespace::world;

async fn read(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    let read = file.read_at(offset, &mut bytes).await.unwrap();
    bytes.truncate(read);
    bytes
}

#[tokio::test(start_paused = true)]
async fn closing_tells_the_exact_length_once_and_only_if_something_was_written() {
    let (catena, _cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    file.sync().await.unwrap();
    assert!(names.lock().told.is_empty(), "nothing to tell");
    file.write_at(0, b"hello").await.unwrap();
    file.sync().await.unwrap();
    file.sync().await.unwrap();
    file.close().await.unwrap();
    file.close().await.unwrap();
    let told: Vec<_> = names
        .lock()
        .told
        .iter()
        .map(|told| (told.wrote, told.high_water, told.acknowledged, told.close))
        .collect();
    assert_eq!(told, [(true, 5, true, false), (false, 0, true, true)]);
    assert_eq!(names.lock().files[&b"f"[..]].length, 5);
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_or_dropped_write_the_chains_are_to_be_asked_for_good() {
    let (catena, cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    file.write_at(0, b"sound").await.unwrap();
    cluster.trick(1, &[Trick::Answer(Status::NoSpace)]);
    assert_eq!(file.write_at(100, b"x").await.unwrap_err().status(), Status::NoSpace);
    file.sync().await.unwrap();
    file.write_at(0, b"more").await.unwrap();
    file.close().await.unwrap();
    let file = catena.create("f").await.unwrap();
    cluster.trick(1, &[Trick::DoAndHang]);
    let dropped = tokio::time::timeout(Duration::from_millis(100), file.write_at(0, b"dropped")).await;
    assert!(dropped.is_err());
    file.close().await.unwrap();
    let told: Vec<_> = names.lock().told.iter().map(|told| (told.wrote, told.acknowledged)).collect();
    assert_eq!(told, [(true, false), (true, false), (true, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_settling_that_fails_is_made_up_for_by_the_next() {
    let (catena, _cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    file.write_at(0, b"hello").await.unwrap();
    names.lock().failing = Some((1, Status::Internal));
    assert_eq!(file.sync().await.unwrap_err().status(), Status::Internal);
    names.lock().failing = Some((1, Status::Internal));
    assert_eq!(file.close().await.unwrap_err().status(), Status::Internal);
    file.close().await.unwrap();
    assert_eq!(names.lock().files[&b"f"[..]].length, 5);
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_only_dropped_is_closed_behind_it() {
    let (catena, _cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    file.write_at(0, b"hello").await.unwrap();
    drop(file);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(names.lock().told.len(), 1);
    assert!(names.lock().told[0].close);
}

#[tokio::test(start_paused = true)]
async fn a_cut_settles_first_and_marks_from_before_it_do_not_count() {
    let (catena, _cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    let bytes = pattern(3000, 1);
    file.write_at(0, &bytes).await.unwrap();
    file.truncate(1000).await.unwrap();
    assert_eq!(file.known_len(), 1000);
    assert_eq!(read(&file, 0, 5000).await, bytes[..1000]);
    file.close().await.unwrap();
    assert_eq!(names.lock().files[&b"f"[..]].length, 1000);
    assert_eq!(names.lock().told[0].high_water, 3000, "settled before the cut");
}

#[tokio::test(start_paused = true)]
async fn two_handles_see_each_others_writes_and_cuts() {
    let (catena, _cluster, _names) = world().await;
    let one = catena.create("f").await.unwrap();
    let two = catena.open("f").await.unwrap();
    one.write_at(0, b"0123456789").await.unwrap();
    assert_eq!(read(&two, 5, 100).await, b"56789");
    assert_eq!(two.len().await.unwrap(), 10);
    one.truncate(3).await.unwrap();
    assert_eq!(read(&two, 0, 100).await, b"012");
    assert_eq!(one.append(b"abc").await.unwrap(), 3);
    assert_eq!(read(&two, 0, 100).await, b"012abc");
}

#[tokio::test(start_paused = true)]
async fn growth_and_cuts_by_others_are_noticed() {
    let (catena, cluster, names) = world().await;
    catena.write("f", b"0123456789").await.unwrap();
    let file = catena.open("f").await.unwrap();
    assert_eq!(read(&file, 0, 10).await, b"0123456789");
    let stats = names.lock().stats;
    assert_eq!(read(&file, 2, 5).await, b"23456");
    assert_eq!(names.lock().stats, stats, "within the known length nobody is asked");
    // Someone else writes and settles.
    cluster.fill(0, b"0123456789abcdef");
    names.lock().files.get_mut(&b"f"[..]).unwrap().length = 16;
    assert_eq!(read(&file, 8, 100).await, b"89abcdef");
    // Someone else cuts: the hole gives it away, after a second at the latest.
    cluster.fill(0, b"01");
    {
        let mut names = names.lock();
        let inode = names.files.get_mut(&b"f"[..]).unwrap();
        (inode.length, inode.truncate_epoch) = (2, inode.truncate_epoch + 1);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(read(&file, 0, 10).await, b"01");
}

#[tokio::test(start_paused = true)]
async fn writes_wait_for_a_cut_and_a_close_waits_for_writes() {
    let (catena, cluster, names) = world().await;
    let file = catena.create("f").await.unwrap();
    cluster.trick(1, &[Trick::Answer(Status::NotYet); 3]);
    let writer = file.clone();
    let write = tokio::spawn(async move { writer.write_at(0, b"slow").await });
    tokio::task::yield_now().await;
    file.close().await.unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(names.lock().files[&b"f"[..]].length, 4);
    assert_eq!(file.read_at(0, &mut [0; 4]).await.unwrap_err().status(), Status::StaleHandle);
}

#[tokio::test(start_paused = true)]
async fn an_error_names_the_path_and_the_place() {
    let (catena, cluster, _names) = world().await;
    let file = catena.create("dir/file").await.unwrap();
    file.write_at(0, b"data").await.unwrap();
    cluster.everywhere(&[Trick::Flip; 10]);
    let error = file.read_at(0, &mut [0; 4]).await.unwrap_err();
    assert_eq!((error.status(), error.errno(), error.path()), (Status::Corrupt, 5, "/dir/file"));
    let text = error.to_string();
    for word in ["read /dir/file", "chunk 9/0", "chain c1", "node n", "restore the file"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_item_of_a_batch_is_its_own() {
    let (catena, _cluster, _names) = world().await;
    let file = catena.create("f").await.unwrap();
    let bytes = pattern(3 * CHUNK_SIZE as usize, 5);
    file.write_at(0, &bytes).await.unwrap();
    let closed = catena.open("f").await.unwrap();
    closed.close().await.unwrap();
    let request = |file, offset, length| ReadRequest { file, offset, length };
    let items = [
        request(&file, 0, 10),
        request(&closed, 0, 10),
        request(&file, u64::from(CHUNK_SIZE) - 5, 10),
        request(&file, u64::MAX - 1, 10),
        request(&file, 3, 0),
        request(&file, 0, 10),
    ];
    let outcomes = catena.read_batch(&items).await;
    let lengths: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().map(catena_client::Data::len).map_err(catena_client::Error::status))
        .collect();
    assert_eq!(lengths, [Ok(10), Err(Status::StaleHandle), Ok(10), Ok(0), Ok(0), Ok(10)]);
    let across = CHUNK_SIZE as usize - 5;
    assert_eq!(outcomes[2].as_ref().unwrap().to_vec(), bytes[across..across + 10]);
    let huge = catena.read_batch(&[request(&file, 0, 1 << 40)]).await.pop().unwrap().unwrap_err();
    assert_eq!(huge.status(), Status::Invalid);
}

#[tokio::test(start_paused = true)]
async fn large_ranges_go_in_parallel_and_within_bounds() {
    let (catena, cluster, _names) = world().await;
    let bytes = pattern(24 << 20, 6);
    let file = catena.create("f").await.unwrap();
    file.write_at(7, &bytes).await.unwrap();
    assert!(read(&file, 7, bytes.len()).await == bytes);
    let crowd = cluster.world.lock().crowded;
    assert_eq!(crowd, 1, "a channel carries one write at a time");
    assert_eq!(catena.pool().stats().classes[0].used, 0);
    assert!(read(&file, 0, 8).await[..7] == [0; 7]);
    let metrics = catena.metrics();
    assert_eq!((metrics.writes, metrics.write_bytes), (1, 24 << 20));
    assert!(metrics.storage.writes >= 24);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_is_stored_wrong_is_noticed() {
    let (catena, cluster, _names) = world().await;
    let bytes = pattern(2_500_000, 7);
    let file = catena.create("f").await.unwrap();
    let put = transfer::put_reader(&bytes[..], &file, &TransferOptions::default()).await.unwrap();
    assert!(put.verified);
    // A chunk changes behind our back.
    cluster.world.lock().chunks.get_mut(&chunk(1)).unwrap().1[5] ^= 1;
    let mut out = Vec::new();
    let options = TransferOptions::default();
    let got = transfer::get_writer(&file, &mut out, &options).await.unwrap();
    assert_ne!(got.crc32c, put.crc32c, "both were read as they are now");
    let progress = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let shared = progress.clone();
    let watcher = cluster.world.clone();
    let options = TransferOptions {
        progress: Some(std::sync::Arc::new(move |step| {
            shared.lock().push(step);
            // In the middle of the transfer.
            watcher.lock().chunks.get_mut(&chunk(2)).unwrap().1[5] ^= 1;
        })),
        ..TransferOptions::default()
    };
    let changed = transfer::get_writer(&file, &mut Vec::new(), &options).await.unwrap_err();
    assert_eq!(changed.status(), Status::Damaged);
    assert!(changed.to_string().contains("chunk 2"), "{changed}");
    let last = *progress.lock().last().unwrap();
    assert_eq!((last.done, last.total), (2_500_000, Some(2_500_000)));
}

#[tokio::test(start_paused = true)]
async fn a_shared_connection_works_for_others_too() {
    let (catena, _cluster, _names) = world().await;
    let other: Catena = catena.on_behalf_of(catena_client::Credentials::user(1000, 1000));
    assert_eq!((other.credentials().uid, catena.credentials().uid), (1000, 0));
    other.write("f", b"hers").await.unwrap();
    assert_eq!(catena.read("f").await.unwrap(), b"hers");
}

#[tokio::test(start_paused = true)]
async fn registered_memory_is_written_from_and_read_into_in_place() {
    let (catena, _cluster, _names) = world().await;
    let file = catena.create("f").await.unwrap();
    let region = catena.region(16 << 20).await.unwrap();
    assert_eq!(region.len(), 16 << 20);
    let bytes = pattern(2_500_000, 8);
    region.take(4096..4096 + bytes.len()).unwrap().copy_from_slice(&bytes);
    file.write_from_region(8192, &region, 4096..4096 + bytes.len()).await.unwrap();
    // Across chunks, from the hole before it to beyond the end of the file.
    let there = 8192 + bytes.len();
    region.take(8 << 20..12 << 20).unwrap().fill(0xee);
    let read = file.read_to_region(0, &region, 8 << 20..12 << 20).await.unwrap();
    assert_eq!(read, there);
    let back = region.take(8 << 20..12 << 20).unwrap();
    assert!(back[..8192].iter().all(|&byte| byte == 0) && back[8192..there] == bytes);
    assert_eq!(catena.pool().stats().classes[0].used, 0);
    drop(back);
    assert_eq!(file.read_to_region(4 << 20, &region, 0..4096).await.unwrap(), 0, "behind the end");
    file.write_from_region(0, &region, 0..0).await.unwrap();
    assert_eq!(read_all(&file).await[8192..], bytes);
}

async fn read_all(file: &File) -> Vec<u8> {
    read(file, 0, 64 << 20).await
}

#[tokio::test(start_paused = true)]
async fn a_region_has_one_user_a_part_and_whole_pages() {
    let (catena, _cluster, _names) = world().await;
    let file = catena.create("f").await.unwrap();
    file.write_at(0, &pattern(20_000, 9)).await.unwrap();
    let region = catena.region(1).await.unwrap();
    let held = region.take(8192..8193).unwrap();
    assert_eq!(region.take(0..8193).unwrap_err().status(), Status::Busy);
    let status = |outcome: catena_client::Result<usize>| outcome.unwrap_err().status();
    assert_eq!(status(file.read_to_region(0, &region, 4096..12_288).await), Status::Busy);
    assert_eq!(file.read_to_region(0, &region, 0..8192).await.unwrap(), 8192, "its neighbours are free");
    assert_eq!(status(file.read_to_region(1, &region, 0..10).await), Status::Invalid);
    assert_eq!(status(file.read_to_region(0, &region, 5..10).await), Status::Invalid);
    assert_eq!(status(file.read_to_region(0, &region, 0..(4 << 20) + 1).await), Status::Range);
    let write = file.write_from_region(0, &region, 8192..12_288).await;
    assert_eq!(write.unwrap_err().status(), Status::Busy);
    drop(held);
    file.write_from_region(0, &region, 8192..12_288).await.unwrap();
    assert_eq!(read_all(&file).await[4090..4100], [&[0; 6], &pattern(20_000, 9)[4096..4100]].concat());
}

#[tokio::test(start_paused = true)]
async fn data_lands_in_the_region_also_when_another_replica_had_to_be_asked() {
    let (catena, cluster, _names) = world().await;
    let file = catena.create("f").await.unwrap();
    let bytes = pattern(300_000, 10);
    file.write_at(0, &bytes).await.unwrap();
    let region = catena.region(1 << 20).await.unwrap();
    for trick in [Trick::Hang, Trick::Flip, Trick::Garble] {
        for node in 1..=2 {
            cluster.trick(node, &[trick]);
        }
        let read = file.read_to_region(0, &region, 4096..404_096).await.unwrap();
        assert_eq!(read, bytes.len(), "{trick:?}");
        assert!(region.take(4096..304_096).unwrap()[..] == bytes, "{trick:?}");
    }
}
