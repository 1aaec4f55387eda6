//! Sources made of others without copying them: pieces put together, and matrices turned over.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::ByteSource;

/// A range of another source.
#[derive(Clone)]
pub struct Piece {
    /// Where the bytes are.
    pub source: Arc<dyn ByteSource>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Pieces of other sources, one after the other.
pub struct Stitched {
    name: String,
    pieces: Vec<Piece>,
    /// Where each piece ends in this source; ascending.
    ends: Vec<u64>,
}

impl Stitched {
    /// Puts `pieces` together; `name` is used in errors.
    ///
    /// # Errors
    /// `InvalidInput` when a piece passes the end of its source.
    pub fn new(name: impl Into<String>, pieces: Vec<Piece>) -> io::Result<Self> {
        let mut ends = Vec::with_capacity(pieces.len());
        let mut length = 0u64;
        for piece in &pieces {
            let end = piece.offset.checked_add(piece.bytes);
            let within = end.is_some_and(|end| end <= piece.source.len());
            let Some(end) = length.checked_add(piece.bytes).filter(|_| within) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            length = end;
            ends.push(end);
        }
        Ok(Stitched {
            name: name.into(),
            pieces,
            ends,
        })
    }

    /// The parts of `range` by piece: the piece, its range in its own source, and where that range
    /// begins within `range`.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (&Piece, Range<u64>, u64)> {
        let first = self.ends.partition_point(|&end| end <= range.start);
        let pieces = self.pieces.iter().zip(&self.ends).skip(first);
        pieces.map_while(move |(piece, &piece_end)| {
            let piece_start = piece_end - piece.bytes;
            let start = range.start.max(piece_start);
            let end = range.end.min(piece_end);
            (start < range.end).then(|| {
                let within = start - piece_start..end - piece_start;
                let range_in_source = piece.offset + within.start..piece.offset + within.end;
                (piece, range_in_source, start - range.start)
            })
        })
    }
}

impl ByteSource for Stitched {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = checked_range(offset, out.len(), self.len())?;
        for (piece, part, begin) in self.parts(range) {
            let begin = begin as usize;
            let length = (part.end - part.start) as usize;
            let target = &mut out[begin..begin + length];
            piece.source.read_at(part.start, target)?;
        }
        Ok(())
    }

    fn release(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.len());
        if range.start < range.end {
            for (piece, part, _) in self.parts(range) {
                piece.source.release(part);
            }
        }
    }
}

/// A matrix of `rows` × `columns` elements read as `columns` × `rows`.
pub struct Transposed {
    name: String,
    matrix: Piece,
    rows: u64,
    columns: u64,
    element_bytes: u64,
}

impl Transposed {
    /// Turns over `matrix`, which holds `rows` rows of `columns` elements; `name` is used in errors.
    ///
    /// # Errors
    /// `InvalidInput` when the sizes do not agree or the matrix passes the end of its source.
    pub fn new(
        name: impl Into<String>,
        matrix: Piece,
        rows: u64,
        columns: u64,
        element_bytes: u64,
    ) -> io::Result<Self> {
        let bytes = rows
            .checked_mul(columns)
            .and_then(|elements| elements.checked_mul(element_bytes));
        let end = matrix.offset.checked_add(matrix.bytes);
        let within = end.is_some_and(|end| end <= matrix.source.len());
        if bytes != Some(matrix.bytes) || matrix.bytes == 0 || !within {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Transposed {
            name: name.into(),
            matrix,
            rows,
            columns,
            element_bytes,
        })
    }

    /// Bytes of a row of this source: a column of the matrix.
    fn row_bytes(&self) -> u64 {
        self.rows * self.element_bytes
    }

    /// Fills `out` with whole rows of this source from row `first`.
    fn read_rows(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let (element, row_bytes) = (self.element_bytes as usize, self.row_bytes() as usize);
        let count = out.len() / row_bytes;
        let mut segment = vec![0; count * element];
        for row in 0..self.rows {
            let offset = (row * self.columns + first) * self.element_bytes;
            let from = self.matrix.offset + offset;
            self.matrix.source.read_at(from, &mut segment)?;
            let column = row as usize * element;
            for (value, target) in segment.chunks_exact(element).zip(out.chunks_mut(row_bytes)) {
                target[column..column + element].copy_from_slice(value);
            }
        }
        Ok(())
    }
}

impl ByteSource for Transposed {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.matrix.bytes
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = checked_range(offset, out.len(), self.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let row_bytes = self.row_bytes();
        let (first, last) = (range.start / row_bytes, range.end.div_ceil(row_bytes));
        let rows = first * row_bytes..last * row_bytes;
        if rows == range {
            return self.read_rows(first, out);
        }
        let mut whole = vec![0; (rows.end - rows.start) as usize];
        self.read_rows(first, &mut whole)?;
        let skipped = (range.start - rows.start) as usize;
        out.copy_from_slice(&whole[skipped..skipped + out.len()]);
        Ok(())
    }
}

fn checked_range(offset: u64, length: usize, all: u64) -> io::Result<Range<u64>> {
    offset
        .checked_add(length as u64)
        .filter(|&end| end <= all)
        .map(|end| offset..end)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn piece(source: &Arc<dyn ByteSource>, offset: u64, bytes: u64) -> Piece {
        Piece {
            source: source.clone(),
            offset,
            bytes,
        }
    }

    fn numbers(count: u8) -> Arc<dyn ByteSource> {
        Arc::new(Memory::new("memory", (0..count).collect::<Vec<u8>>()))
    }

    fn every_range(view: &dyn ByteSource, expected: &[u8]) {
        assert_eq!(view.len(), expected.len() as u64);
        for start in 0..=expected.len() {
            for end in start..=expected.len() {
                let mut out = vec![0; end - start];
                view.read_at(start as u64, &mut out).unwrap();
                assert_eq!(out, expected[start..end], "{start}..{end}");
            }
        }
        let mut past = vec![0; expected.len()];
        assert!(view.read_at(1, &mut past).is_err());
        assert!(view.read_at(u64::MAX, &mut past).is_err());
    }

    #[test]
    fn stitched_pieces_read_as_one() {
        let source = numbers(20);
        let pieces = [(3, 4), (0, 0), (15, 5), (0, 1)];
        let pieces = pieces.map(|(offset, bytes)| piece(&source, offset, bytes));
        let stitched = Stitched::new("stitched", pieces.to_vec()).unwrap();
        every_range(&stitched, &[3, 4, 5, 6, 15, 16, 17, 18, 19, 0]);
        stitched.release(0..u64::MAX);
    }

    #[test]
    fn transposed_is_a_column_by_column_copy() {
        let source = numbers(3 + 2 * 3 * 4);
        // Two rows of three 4-byte elements, from byte 3.
        let matrix = piece(&source, 3, 24);
        let transposed = Transposed::new("transposed", matrix, 2, 3, 4).unwrap();
        let element = |index: u8| (0..4).map(move |byte| 3 + 4 * index + byte);
        let expected: Vec<u8> = [0, 3, 1, 4, 2, 5].into_iter().flat_map(element).collect();
        every_range(&transposed, &expected);
    }

    #[test]
    fn pieces_past_the_end_are_refused() {
        let source = numbers(8);
        assert!(Stitched::new("stitched", vec![piece(&source, 5, 4)]).is_err());
        assert!(Stitched::new("stitched", vec![piece(&source, u64::MAX, 4)]).is_err());
        assert!(Transposed::new("transposed", piece(&source, 0, 8), 2, 2, 4).is_err());
        assert!(Transposed::new("transposed", piece(&source, 4, 8), 2, 2, 2).is_err());
    }
}
