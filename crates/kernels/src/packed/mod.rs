//! Matrices in the form that the kernels read.

pub(crate) mod layout;
mod pack;
pub(crate) mod split;
pub(crate) mod unpack;

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::arch::memory;
use crate::arch::product::SplitBundle;
use crate::arch::threads::DisjointPieces;
use crate::schedule::run_in_streams;
use crate::{Isa, KernelError, TensorType, ThreadPool};
use layout::{BLOCK, GROUP, SPAN, group_bytes, spec};
use split::{BUNDLE, GroupParts, LowPart};
use unpack::UnpackedBlock;

/// Bytes that belong to someone else, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// How a matrix is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PackedForm {
    /// For products with all rows.
    #[default]
    Interleaved,
    /// The high and the low half of each code apart, so that a [`Screen`](crate::Screen) finds the highest products
    /// reading little more than half of it; full products are a little slower. For Q8_0.
    Split,
}

impl PackedForm {
    /// The form for the matrix that gives a token's scores, where mostly only the highest are wanted.
    pub fn for_scores(ty: TensorType, rows: usize) -> PackedForm {
        /// Below this there is nothing to gain.
        const LEAST_ROWS: usize = 256;
        if split::can_split(ty) && rows >= LEAST_ROWS {
            PackedForm::Split
        } else {
            PackedForm::Interleaved
        }
    }
}

/// A matrix [rows, cols] in the form that the kernels read: groups of 16 rows interleaved, so that a thread reads one
/// straight stream into full registers. The form is the same on every instruction set and hardly larger than the file's.
#[derive(Clone)]
pub struct PackedMatrix {
    ty: TensorType,
    form: PackedForm,
    /// Whether all norms of a split matrix are finite.
    has_finite_norms: bool,
    rows: usize,
    cols: usize,
    group_bytes: usize,
    storage: SharedBytes,
    /// Where in the storage the matrix lies.
    range: Range<usize>,
}

impl PackedMatrix {
    /// Version of the packed form: a cache that holds another one is stale.
    pub const FORM: u32 = 3;
    /// Alignment that [`from_bytes`](Self::from_bytes) wants for the best speed, bytes.
    pub const ALIGNMENT: usize = memory::ALIGNMENT;

    /// Bytes of the interleaved form of a matrix.
    ///
    /// # Errors
    /// If a row does not fill whole blocks, or the shape is too large.
    pub fn packed_bytes(ty: TensorType, rows: usize, cols: usize) -> Result<usize, KernelError> {
        Self::packed_bytes_of(PackedForm::Interleaved, ty, rows, cols)
    }

    /// [`packed_bytes`](Self::packed_bytes) of another form.
    ///
    /// # Errors
    /// As [`packed_bytes`](Self::packed_bytes), and if the type has no such form.
    pub fn packed_bytes_of(
        form: PackedForm,
        ty: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<usize, KernelError> {
        Ok(Shape::new(form, ty, rows, cols)?.packed_bytes)
    }

    /// Starts a matrix of `rows` rows of `cols` elements.
    ///
    /// # Errors
    /// If a row does not fill whole blocks, or there is no memory for the shape.
    pub fn builder(
        ty: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrixBuilder, KernelError> {
        Self::builder_of(PackedForm::Interleaved, ty, rows, cols)
    }

    /// [`builder`](Self::builder) of another form.
    ///
    /// # Errors
    /// As [`builder`](Self::builder), and if the type has no such form.
    pub fn builder_of(
        form: PackedForm,
        ty: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrixBuilder, KernelError> {
        let shape = Shape::new(form, ty, rows, cols)?;
        let bytes = memory::Bytes::zeroed(shape.packed_bytes)
            .ok_or(KernelError::OutOfMemory(shape.packed_bytes))?;
        Ok(PackedMatrixBuilder {
            form,
            ty,
            rows,
            cols,
            shape,
            bytes,
            pushed: 0,
        })
    }

    /// Packs a whole matrix; `raw` are its rows as in a GGUF file.
    ///
    /// # Errors
    /// As [`builder`](Self::builder), and if `raw` has another length than the shape needs.
    pub fn pack(
        ty: TensorType,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> Result<PackedMatrix, KernelError> {
        let mut builder = Self::builder(ty, rows, cols)?;
        builder.push_rows(raw)?;
        builder.finish()
    }

    /// A matrix whose packed form, as [`as_bytes`](Self::as_bytes) gave it, lies at `range` of `storage`.
    ///
    /// # Errors
    /// If the shape is impossible or needs another number of bytes. The content cannot be wrong: any bytes are a
    /// matrix.
    pub fn from_bytes(
        ty: TensorType,
        rows: usize,
        cols: usize,
        storage: SharedBytes,
        range: Range<usize>,
    ) -> Result<PackedMatrix, KernelError> {
        Self::from_bytes_of(PackedForm::Interleaved, ty, rows, cols, storage, range)
    }

    /// [`from_bytes`](Self::from_bytes) of another form.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes), if the type has no such form, and if a split matrix does not begin at a
    /// multiple of 4 bytes in memory.
    pub fn from_bytes_of(
        form: PackedForm,
        ty: TensorType,
        rows: usize,
        cols: usize,
        storage: SharedBytes,
        range: Range<usize>,
    ) -> Result<PackedMatrix, KernelError> {
        let shape = Shape::new(form, ty, rows, cols)?;
        let actual = (*storage)
            .as_ref()
            .get(range.clone())
            .map_or(0, |bytes| bytes.len());
        if actual != shape.packed_bytes {
            return Err(KernelError::Length {
                ty,
                expected: shape.packed_bytes,
                actual,
            });
        }
        let mut matrix = PackedMatrix {
            ty,
            form,
            has_finite_norms: false,
            rows,
            cols,
            group_bytes: shape.group_bytes,
            storage,
            range,
        };
        if form == PackedForm::Split {
            if !matrix
                .as_bytes()
                .as_ptr()
                .addr()
                .is_multiple_of(align_of::<f32>())
            {
                return Err(KernelError::Misaligned(ty));
            }
            let finite = matrix.norms().flatten().all(|norm| norm.is_finite());
            matrix.has_finite_norms = finite;
        }
        Ok(matrix)
    }

    /// The same matrix with its packed form at another place: `range` of `storage`, which holds the same bytes or will
    /// be taken for the matrix.
    ///
    /// # Errors
    /// If the range is not in the storage or has another length.
    pub fn with_storage(
        &self,
        storage: SharedBytes,
        range: Range<usize>,
    ) -> Result<PackedMatrix, KernelError> {
        let within = (*storage).as_ref().get(range.clone()).is_some();
        if !within || range.len() != self.range.len() {
            return Err(KernelError::Length {
                ty: self.ty,
                expected: self.range.len(),
                actual: if within { range.len() } else { 0 },
            });
        }
        Ok(PackedMatrix {
            storage,
            range,
            ..self.clone()
        })
    }

    /// Where in its storage the packed form lies.
    pub fn storage_range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The packed form.
    pub fn as_bytes(&self) -> &[u8] {
        (*self.storage)
            .as_ref()
            .get(self.range.clone())
            .expect("storage that keeps its length")
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed form: what a product with one token reads.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// The format that the matrix had in the file.
    pub fn tensor_type(&self) -> TensorType {
        self.ty
    }

    /// Writes row `row` as f32 to `out`, shape `[cols]`.
    ///
    /// # Errors
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if row >= self.rows {
            return Err(KernelError::NoSuchRow {
                row,
                rows: self.rows,
            });
        }
        if out.len() != self.cols {
            return Err(KernelError::Length {
                ty: self.ty,
                expected: self.cols,
                actual: out.len(),
            });
        }
        let lane = row % GROUP;
        if self.form == PackedForm::Split {
            let (high, low) = self.group_parts(row / GROUP);
            split::read_row(high, low, lane, out);
            return Ok(());
        }
        let group = &self.as_bytes()[row / GROUP * self.group_bytes..][..self.group_bytes];
        match self.ty {
            TensorType::F32 => read_floats(group, lane, out, f32::from_le_bytes),
            TensorType::F16 => {
                read_floats(group, lane, out, |x| f16::from_le_bytes(x).to_f32());
            }
            TensorType::BF16 => {
                read_floats(group, lane, out, |x| bf16::from_le_bytes(x).to_f32());
            }
            _ => read_quantised(self.ty, group, lane, out),
        }
        Ok(())
    }

    /// How it is laid out.
    pub fn form(&self) -> PackedForm {
        self.form
    }

    /// Whether a [`Screen`](crate::Screen) can search it: it is split, and its scales are numbers.
    pub fn can_screen(&self) -> bool {
        self.form == PackedForm::Split && self.has_finite_norms
    }

    /// The bytes of a group of 16 rows in the interleaved form; `buffer` holds them where the matrix is split.
    pub(crate) fn group<'a>(
        &'a self,
        isa: Isa,
        group: usize,
        buffer: &'a mut Vec<Line>,
    ) -> &'a [u8] {
        if self.form == PackedForm::Interleaved {
            return &self.as_bytes()[group * self.group_bytes..][..self.group_bytes];
        }
        let blocks = self.cols / BLOCK;
        let bytes = spec(self.ty).group_bytes(blocks);
        buffer.resize(bytes.div_ceil(size_of::<Line>()), Line::default());
        let joined = &mut bytemuck::cast_slice_mut(buffer)[..bytes];
        let (high, low) = self.group_parts(group);
        crate::arch::product::join(isa, high, low, joined);
        joined
    }

    /// The high parts of all groups of a split matrix.
    pub(crate) fn high_part(&self) -> &[u8] {
        let groups = self.rows.div_ceil(GROUP);
        &self.as_bytes()[..groups * split::high_group_bytes(self.cols / BLOCK)]
    }

    /// The high and the low part of a group of a split matrix.
    pub(crate) fn group_parts(&self, group: usize) -> (&[u8], LowPart<'_>) {
        let (groups, blocks) = (self.rows.div_ceil(GROUP), self.cols / BLOCK);
        let bytes = split::high_group_bytes(blocks);
        let (highs, rest) = self.as_bytes().split_at(groups * bytes);
        let low = LowPart::new(rest, groups, blocks, group);
        (&highs[group * bytes..][..bytes], low)
    }

    /// A bundle of groups of a split matrix.
    pub(crate) fn bundle(&self, bundle: usize) -> SplitBundle<'_> {
        let (all, blocks) = (self.rows.div_ceil(GROUP), self.cols / BLOCK);
        let first = bundle * BUNDLE;
        let groups = BUNDLE.min(all - first);
        let (high, low) = (
            split::high_group_bytes(blocks),
            split::low_group_bytes(blocks),
        );
        let (highs, lows) = self.as_bytes().split_at(all * high);
        SplitBundle {
            highs: &highs[first * high..][..groups * high],
            lows: &lows[first * low..][..groups * low],
            groups,
            blocks,
        }
    }

    /// Norms of what the high part of a split matrix leaves out, of each group of 16 rows.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &[f32; GROUP]> {
        let bytes = &self.as_bytes()[self.bytes() - self.rows.div_ceil(GROUP) * split::NORMS..];
        bytemuck::cast_slice::<u8, [f32; GROUP]>(bytes).iter()
    }
}

/// A cache line.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u64; 8]);

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("ty", &self.ty)
            .field("rows", &self.rows)
            .field("cols", &self.cols)
            .finish_non_exhaustive()
    }
}

/// Sizes that follow from a matrix's type and shape.
#[derive(Clone, Copy, Debug)]
struct Shape {
    row_bytes: usize,
    raw_bytes: usize,
    group_bytes: usize,
    packed_bytes: usize,
}

impl Shape {
    fn new(
        form: PackedForm,
        ty: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<Shape, KernelError> {
        let too_large = KernelError::TooLarge {
            rows,
            columns: cols,
        };
        // Rejects what would overflow before anything is computed from it.
        if cols > isize::MAX as usize / 64 {
            return Err(too_large);
        }
        let row_bytes = ty
            .row_bytes(cols)
            .ok_or(KernelError::PartialBlock { ty, columns: cols })?;
        let mut group_bytes = group_bytes(ty, cols).ok_or(too_large.clone())?;
        if form == PackedForm::Split {
            if !split::can_split(ty) {
                return Err(KernelError::NoSplitForm(ty));
            }
            let blocks = cols / BLOCK;
            group_bytes =
                split::high_group_bytes(blocks) + split::low_group_bytes(blocks) + split::NORMS;
        }
        let groups = rows.div_ceil(GROUP);
        let sizes = groups
            .checked_mul(group_bytes)
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .zip(rows.checked_mul(row_bytes));
        let (packed_bytes, raw_bytes) = sizes.ok_or(too_large)?;
        Ok(Shape {
            row_bytes,
            raw_bytes,
            group_bytes,
            packed_bytes,
        })
    }
}

/// Packs a matrix some rows at a time.
#[derive(Debug)]
pub struct PackedMatrixBuilder {
    form: PackedForm,
    ty: TensorType,
    rows: usize,
    cols: usize,
    shape: Shape,
    bytes: memory::Bytes,
    /// Rows packed so far.
    pushed: usize,
}

impl PackedMatrixBuilder {
    /// Appends whole rows, as in a GGUF file.
    ///
    /// # Errors
    /// If `raw` is not whole rows, or more rows come than the matrix has.
    pub fn push_rows(&mut self, raw: &[u8]) -> Result<(), KernelError> {
        self.push(raw, |groups, pack| (0..groups).for_each(pack))
    }

    /// [`push_rows`](Self::push_rows) on all threads of a pool.
    ///
    /// # Errors
    /// As [`push_rows`](Self::push_rows).
    pub fn push_rows_parallel(&mut self, pool: &ThreadPool, raw: &[u8]) -> Result<(), KernelError> {
        self.push(raw, |groups, pack| run_in_streams(pool, groups, pack))
    }

    /// The matrix.
    ///
    /// # Errors
    /// If rows are missing.
    pub fn finish(self) -> Result<PackedMatrix, KernelError> {
        if self.pushed != self.rows {
            return Err(self.wrong_length(self.pushed * self.shape.row_bytes));
        }
        let range = 0..self.shape.packed_bytes;
        let (form, ty, storage) = (self.form, self.ty, Arc::new(self.bytes));
        PackedMatrix::from_bytes_of(form, ty, self.rows, self.cols, storage, range)
    }

    /// Packs rows bundle by bundle of groups; `each(n, f)` calls `f(0)` to `f(n - 1)`.
    fn push(
        &mut self,
        raw: &[u8],
        each: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) -> Result<(), KernelError> {
        let row_bytes = self.shape.row_bytes;
        let held = self.pushed * row_bytes;
        if raw.is_empty() && row_bytes > 0 {
            return Ok(());
        }
        if row_bytes == 0 {
            // Rows without columns have no bytes to count.
            self.pushed = self.rows;
        }
        if row_bytes == 0 || !raw.len().is_multiple_of(row_bytes) {
            return if raw.is_empty() {
                Ok(())
            } else {
                Err(self.wrong_length(raw.len()))
            };
        }
        if raw.len() > self.shape.raw_bytes - held {
            return Err(self.wrong_length(held.saturating_add(raw.len())));
        }
        let (first, end) = (self.pushed, self.pushed + raw.len() / row_bytes);
        let (ty, cols) = (self.ty, self.cols);
        let target = Target::new(
            self.form,
            self.bytes.as_mut_slice(),
            self.rows,
            cols,
            &self.shape,
        );
        let groups_at_once = target.groups_at_once();
        let rows_at_once = groups_at_once * GROUP;
        let first_index = first / rows_at_once;
        each(end.div_ceil(rows_at_once) - first_index, &|index| {
            let index = first_index + index;
            let bundle = target.bundle(index);
            for place in 0..groups_at_once {
                let group = index * groups_at_once + place;
                let start = group * GROUP;
                let rows = start.max(first)..end.min(start + GROUP);
                if rows.is_empty() {
                    continue;
                }
                let mut slices = [&raw[..0]; GROUP];
                for (slice, row) in slices.iter_mut().zip(rows.clone()) {
                    *slice = &raw[(row - first) * row_bytes..][..row_bytes];
                }
                let lane = rows.start - start;
                let slices = &slices[..rows.len()];
                match &target {
                    Target::Interleaved(groups) => {
                        pack::pack_rows(ty, cols, slices, lane, groups.take(group));
                    }
                    Target::Split { high, norms, .. } => {
                        let mut parts = GroupParts {
                            high: high.take(group),
                            groups: bundle.len() / split::low_group_bytes(cols / BLOCK),
                            bundle: &mut *bundle,
                            group: place,
                            norms: norms.take(group),
                        };
                        split::pack_rows(cols, slices, lane, &mut parts);
                    }
                }
            }
        });
        self.pushed = end;
        Ok(())
    }

    fn wrong_length(&self, actual: usize) -> KernelError {
        KernelError::Length {
            ty: self.ty,
            expected: self.shape.raw_bytes,
            actual,
        }
    }
}

/// The groups of a matrix that is being packed.
enum Target<'a> {
    Interleaved(DisjointPieces<'a, u8>),
    Split {
        high: DisjointPieces<'a, u8>,
        /// By bundles.
        low: DisjointPieces<'a, u8>,
        norms: DisjointPieces<'a, u8>,
    },
}

impl<'a> Target<'a> {
    fn new(form: PackedForm, bytes: &'a mut [u8], rows: usize, cols: usize, shape: &Shape) -> Self {
        if form == PackedForm::Interleaved {
            return Target::Interleaved(DisjointPieces::new(bytes, shape.group_bytes));
        }
        let (groups, blocks) = (rows.div_ceil(GROUP), cols / BLOCK);
        let (high_bytes, low_bytes) = (
            split::high_group_bytes(blocks),
            split::low_group_bytes(blocks),
        );
        let (high, rest) = bytes.split_at_mut(groups * high_bytes);
        let (low, norms) = rest.split_at_mut(groups * low_bytes);
        Target::Split {
            high: DisjointPieces::new(high, high_bytes),
            low: DisjointPieces::new(low, BUNDLE * low_bytes),
            norms: DisjointPieces::new(norms, split::NORMS),
        }
    }

    /// Groups that one thread packs.
    fn groups_at_once(&self) -> usize {
        match self {
            Target::Interleaved(_) => 1,
            Target::Split { .. } => BUNDLE,
        }
    }

    /// The low part of a bundle; nothing where there are none.
    fn bundle(&self, index: usize) -> &mut [u8] {
        match self {
            Target::Interleaved(_) => &mut [],
            Target::Split { low, .. } => low.take(index),
        }
    }
}

fn read_floats<const BYTES: usize>(
    group: &[u8],
    lane: usize,
    out: &mut [f32],
    read: impl Fn([u8; BYTES]) -> f32,
) {
    let elements = group
        .as_chunks::<BYTES>()
        .0
        .iter()
        .skip(lane)
        .step_by(GROUP);
    for (out, element) in out.iter_mut().zip(elements) {
        *out = read(*element);
    }
}

fn read_quantised(ty: TensorType, group: &[u8], lane: usize, out: &mut [f32]) {
    let spec = spec(ty);
    let zero = spec.zero_shift.map_or(0, |shift| 1 << shift);
    let blocks = out.len() / BLOCK;
    let mut unpacked = UnpackedBlock::new();
    let mut rest = group;
    for span in 0..blocks.div_ceil(SPAN) {
        let count = SPAN.min(blocks - span * SPAN);
        let (bytes, later) = rest.split_at(spec.span_bytes(count));
        rest = later;
        for index in 0..count {
            unpacked.read(&spec, bytes, count, index);
            let out = &mut out[(span * SPAN + index) * BLOCK..][..BLOCK];
            for (column, out) in out.iter_mut().enumerate() {
                let code = unpacked.codes[column / 4 * 64 + lane * 4 + column % 4];
                let half = if spec.halves() == 2 { column / 16 } else { 0 };
                let value = unpacked.scales[half][lane] * (i32::from(code) - zero) as f32;
                *out = match spec.minima() {
                    0 => value,
                    1 => value - unpacked.minima[0][lane],
                    _ => value - unpacked.minima[half][lane],
                };
            }
        }
    }
}
