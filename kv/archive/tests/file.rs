//! A file is what was written, or it is refused.

use catena_kv::KeyValue;
use catena_kv_archive::{Flaw, Header, ReadError, Reader, Writer};
use catena_proto::ids::ClusterId;

fn header() -> Header {
    Header { cluster: ClusterId(7), read_version: Some(42), made: 1_764_000_000, release: "0.1.0".into() }
}

fn write(header: &Header, records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), header).unwrap();
    records.iter().for_each(|(key, value)| writer.push(key, value).unwrap());
    let (bytes, tally, length) = writer.finish().unwrap();
    assert_eq!((tally.records, length), (records.len() as u64, bytes.len() as u64));
    bytes
}

fn read(bytes: &[u8]) -> Result<(Header, Vec<KeyValue>), ReadError> {
    let mut reader = Reader::new(bytes)?;
    let mut records = Vec::new();
    while let Some(block) = reader.next_block()? {
        records.extend(block);
    }
    assert_eq!(reader.tally().records, records.len() as u64);
    Ok((reader.header().clone(), records))
}

fn some(count: u32, value: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count).map(|n| (format!("INOD{n}").into_bytes(), vec![n as u8; value])).collect()
}

#[test]
fn what_is_written_comes_back() {
    let limits = vec![(vec![0xfe; 10_000], vec![1; 100_000]), (vec![], vec![]), (vec![0], vec![])];
    for records in [vec![], some(3, 10), some(10_000, 100), limits] {
        let (found, back) = read(&write(&header(), &records)).unwrap();
        assert_eq!(found, header());
        assert_eq!(back.len(), records.len());
        for (record, (key, value)) in back.iter().zip(&records) {
            assert_eq!((&record.key[..], &record.value[..]), (&key[..], &value[..]));
        }
    }
    let long = Header { release: "a release with a long name".into(), read_version: None, ..header() };
    let (found, _) = read(&write(&long, &[])).unwrap();
    assert_eq!((found.read_version, &found.release[..]), (None, "a release with a"));
}

#[test]
fn a_file_that_ends_too_early_is_refused_wherever_it_ends() {
    let bytes = write(&header(), &some(40, 20));
    for length in 0..bytes.len() {
        match read(&bytes[..length]) {
            Err(ReadError::Flaw(Flaw::Truncated(at))) => assert_eq!(at, length as u64),
            Err(ReadError::Flaw(Flaw::Foreign)) if length == 0 => {}
            other => panic!("{length}: {other:?}"),
        }
    }
    // Also between two blocks.
    let whole = write(&header(), &some(10_000, 100));
    let block = 64 + 16 + u32::from_le_bytes(whole[72..76].try_into().unwrap()) as usize;
    assert!(matches!(read(&whole[..block]), Err(ReadError::Flaw(Flaw::Truncated(_)))));
}

#[test]
fn a_file_with_a_changed_byte_is_refused_wherever_it_is() {
    let bytes = write(&header(), &some(40, 20));
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            assert!(matches!(read(&changed), Err(ReadError::Flaw(_))), "byte {at} ^ {change}");
        }
    }
}

#[test]
fn blocks_that_are_missing_doubled_or_exchanged_are_noticed() {
    let bytes = write(&header(), &some(10_000, 100));
    let mut parts = Vec::new();
    let mut at = 64;
    while at < bytes.len() {
        let length = 16 + u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        parts.push(&bytes[at..at + length]);
        at += length;
    }
    assert!(parts.len() > 4);
    let file = |order: &[usize]| {
        let parts = order.iter().flat_map(|&n| parts[n].iter().copied());
        bytes[..64].iter().copied().chain(parts).collect::<Vec<_>>()
    };
    let all: Vec<_> = (0..parts.len()).collect();
    read(&file(&all)).expect("taken apart and put together");
    let mut exchanged = all.clone();
    exchanged.swap(0, 1);
    let doubled = [&[0], &all[..]].concat();
    let tailed = [&all[..], &[0]].concat();
    for order in [&all[1..], &exchanged, &doubled, &tailed] {
        assert!(matches!(read(&file(order)), Err(ReadError::Flaw(Flaw::Damaged { .. }))), "{order:?}");
    }
}

#[test]
fn something_else_and_a_newer_format_are_named() {
    assert!(matches!(read(b"[store]\nkind = \"embedded\"\n"), Err(ReadError::Flaw(Flaw::Foreign))));
    let mut newer = write(&header(), &[]);
    newer[8] = 2;
    let error = read(&newer).unwrap_err();
    assert!(error.to_string().contains("format 2, this program reads format 1"), "{error}");
}
