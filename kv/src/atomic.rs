//! Atomic operations: the arithmetic of FoundationDB's mutation types, byte for byte, as a function of the value before.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::VALUE_LIMIT;

/// An operation applied to a value at commit. Numbers are little-endian and unsigned; the value before is cut or zero-extended to
/// the operand's length; an absent value counts as zero where nothing else is said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Atomic {
    /// Adds the operand, wrapping. Negative numbers in two's complement work.
    Add,
    /// Bitwise and; an absent value becomes the operand.
    BitAnd,
    /// Bitwise or.
    BitOr,
    /// Bitwise exclusive or.
    BitXor,
    /// The greater number.
    Max,
    /// The smaller number; an absent value becomes the operand.
    Min,
    /// The lexicographically greater byte string; an absent value becomes the operand.
    ByteMax,
    /// The lexicographically smaller byte string; an absent value becomes the operand.
    ByteMin,
    /// The value followed by the operand if that fits into a value, else the value.
    AppendIfFits,
    /// Removes the key if its value equals the operand.
    CompareAndClear,
}

impl Atomic {
    /// The value after, given the value before; `None` is absence.
    pub fn apply(self, before: Option<&Bytes>, operand: &Bytes) -> Option<Bytes> {
        let old: &[u8] = before.map_or(&[], |value| value);
        let bitwise = |op: fn(u8, u8) -> u8, rest: fn(u8) -> u8| {
            let bytes = operand.iter().enumerate();
            Bytes::from_iter(bytes.map(|(i, &b)| old.get(i).map_or_else(|| rest(b), |&a| op(a, b))))
        };
        Some(match self {
            Atomic::CompareAndClear => return before.filter(|value| *value != operand).cloned(),
            Atomic::Add => add(old, operand),
            Atomic::BitAnd if before.is_none() => operand.clone(),
            Atomic::BitAnd => bitwise(|a, b| a & b, |_| 0),
            Atomic::BitOr => bitwise(|a, b| a | b, |b| b),
            Atomic::BitXor => bitwise(|a, b| a ^ b, |b| b),
            Atomic::Max if compare(old, operand).is_gt() => resize(old, operand.len()),
            Atomic::Min if before.is_some() && compare(old, operand).is_lt() => resize(old, operand.len()),
            Atomic::Max | Atomic::Min => operand.clone(),
            Atomic::ByteMax => before.filter(|value| *value > operand).unwrap_or(operand).clone(),
            Atomic::ByteMin => before.filter(|value| *value < operand).unwrap_or(operand).clone(),
            Atomic::AppendIfFits => match before {
                Some(value) if value.len() + operand.len() > VALUE_LIMIT => value.clone(),
                _ => Bytes::from([old, operand.as_ref()].concat()),
            },
        })
    }
}

fn add(old: &[u8], operand: &[u8]) -> Bytes {
    let mut carry = 0u16;
    let bytes = operand.iter().enumerate();
    Bytes::from_iter(bytes.map(|(i, &b)| {
        let sum = u16::from(b) + u16::from(old.get(i).copied().unwrap_or(0)) + carry;
        carry = sum >> 8;
        sum as u8
    }))
}

/// `old` at the operand's length, for operations on numbers.
fn resize(old: &[u8], length: usize) -> Bytes {
    let mut bytes = old[..old.len().min(length)].to_vec();
    bytes.resize(length, 0);
    Bytes::from(bytes)
}

/// How `old`, at the operand's length, compares with the operand as a little-endian number.
fn compare(old: &[u8], operand: &[u8]) -> Ordering {
    let digits = (0..operand.len()).rev();
    digits
        .map(|i| old.get(i).copied().unwrap_or(0).cmp(&operand[i]))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_after_are_foundationdbs() {
        use Atomic::*;
        type Row = (Atomic, Option<&'static [u8]>, &'static [u8], Option<&'static [u8]>);
        let rows: &[Row] = &[
            (Add, None, &[1, 0], Some(&[1, 0])),
            (Add, Some(&[255, 0]), &[1, 0], Some(&[0, 1])),
            (Add, Some(&[255, 255]), &[1, 0], Some(&[0, 0])),
            (Add, Some(&[1, 2, 3]), &[1], Some(&[2])),
            (Add, Some(&[7]), &[1, 0, 0], Some(&[8, 0, 0])),
            (Add, Some(&[5]), &[255], Some(&[4])),
            (BitAnd, None, &[6], Some(&[6])),
            (BitAnd, Some(&[3]), &[6, 9], Some(&[2, 0])),
            (BitOr, None, &[6], Some(&[6])),
            (BitOr, Some(&[1]), &[6, 9], Some(&[7, 9])),
            (BitXor, Some(&[3, 1]), &[6], Some(&[5])),
            (Max, None, &[0, 1], Some(&[0, 1])),
            (Max, Some(&[9, 0]), &[1, 1], Some(&[1, 1])),
            (Max, Some(&[9, 2]), &[255, 1], Some(&[9, 2])),
            (Max, Some(&[9]), &[8, 0], Some(&[9, 0])),
            (Max, Some(&[1, 5]), &[2], Some(&[2])),
            (Min, None, &[4], Some(&[4])),
            (Min, Some(&[]), &[4], Some(&[0])),
            (Min, Some(&[9, 0]), &[1, 1], Some(&[9, 0])),
            (Min, Some(&[9, 1]), &[1, 1], Some(&[1, 1])),
            (Min, Some(&[3, 5]), &[4], Some(&[3])),
            (ByteMax, None, b"a", Some(b"a")),
            (ByteMax, Some(b"b"), b"a", Some(b"b")),
            (ByteMax, Some(b"b"), b"ba", Some(b"ba")),
            (ByteMin, None, b"a", Some(b"a")),
            (ByteMin, Some(b"b"), b"a", Some(b"a")),
            (ByteMin, Some(b"b"), b"ba", Some(b"b")),
            (AppendIfFits, None, b"x", Some(b"x")),
            (AppendIfFits, Some(b"ab"), b"x", Some(b"abx")),
            (CompareAndClear, None, b"x", None),
            (CompareAndClear, Some(b"x"), b"x", None),
            (CompareAndClear, Some(b"y"), b"x", Some(b"y")),
        ];
        for &(op, before, operand, after) in rows {
            let before = before.map(Bytes::from_static);
            let got = op.apply(before.as_ref(), &Bytes::from_static(operand));
            assert_eq!(got.as_deref(), after, "{op:?} of {before:?} and {operand:?}");
        }
        let full = Bytes::from(vec![0; VALUE_LIMIT]);
        assert_eq!(AppendIfFits.apply(Some(&full), &Bytes::from_static(b"x")), Some(full));
    }
}
