//! I/O buffers: page-aligned memory, counted, recycled.
//!
//! A buffer is handed to the device by cloning a [`BufSlice`] into the operation; the clone keeps the memory alive until
//! the completion. Bytes go in and out by copying, because the device may be at work on another part of the same buffer;
//! no Rust reference to memory that the device writes ever exists.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

/// Alignment of every buffer, bytes: what direct I/O needs on any device.
pub const BUF_ALIGN: usize = 4096;

struct Memory {
    ptr: NonNull<u8>,
    len: usize,
    /// From `mmap`: pages that were never touched take no memory.
    sparse: bool,
    /// Operations in flight whose completion writes into this memory.
    device_writes: Cell<u32>,
    home: Weak<Pool>,
}

impl Memory {
    fn new(len: usize, home: Weak<Pool>) -> Memory {
        let layout = Memory::layout(len);
        // SAFETY: the layout has a non-zero size (`layout` rounds up to at least one page).
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Memory { ptr, len: layout.size(), sparse: false, device_writes: Cell::new(0), home }
    }

    fn sparse(len: usize) -> Memory {
        let layout = Memory::layout(len);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let ptr = unsafe {
            libc::mmap(std::ptr::null_mut(), layout.size(), access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        let ptr = if ptr == libc::MAP_FAILED { None } else { NonNull::new(ptr.cast::<u8>()) };
        let Some(ptr) = ptr else { handle_alloc_error(layout) };
        // A huge page would make the untouched part resident. Refusal (a kernel without them) is as good.
        // SAFETY: the range is the mapping made above; the advice does not change what it holds.
        unsafe { libc::madvise(ptr.as_ptr().cast(), layout.size(), libc::MADV_NOHUGEPAGE) };
        Memory { ptr, len: layout.size(), sparse: true, device_writes: Cell::new(0), home: Weak::new() }
    }

    fn layout(len: usize) -> Layout {
        let size = len.max(1).next_multiple_of(BUF_ALIGN);
        Layout::from_size_align(size, BUF_ALIGN).expect("a buffer's size fits the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.sparse {
            // SAFETY: `ptr` came from `mmap` with this very length, and no slice is left: the last owner drops it.
            unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
            return;
        }
        // SAFETY: `ptr` came from `alloc_zeroed` with this very layout, and no slice is left: the last owner drops it.
        unsafe { dealloc(self.ptr.as_ptr(), Memory::layout(self.len)) }
    }
}

/// A counted, page-aligned buffer that belongs to one shard.
pub struct Buf(Option<Rc<Memory>>);

impl Clone for Buf {
    fn clone(&self) -> Self {
        Buf(self.0.clone())
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(memory) = self.0.take()
            && Rc::strong_count(&memory) == 1
            && let Some(pool) = memory.home.upgrade()
        {
            pool.give_back(memory);
        }
    }
}

impl Buf {
    /// A zeroed buffer of exactly `len` bytes (rounded up to a page) outside every pool, whose pages take memory when
    /// they are first touched: for buffers that must be large and are mostly used at their beginning.
    pub fn sparse(len: usize) -> Buf {
        Buf(Some(Rc::new(Memory::sparse(len))))
    }

    fn memory(&self) -> &Memory {
        self.0.as_ref().expect("present until drop")
    }

    /// Capacity in bytes, a multiple of 4096.
    pub fn len(&self) -> usize {
        self.memory().len
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The part `[off, off + len)`.
    pub fn slice(&self, off: usize, len: usize) -> BufSlice {
        assert!(off.checked_add(len).is_some_and(|end| end <= self.len()), "slice inside the buffer");
        BufSlice { buf: self.clone(), off, len }
    }
}

/// A part of a [`Buf`]; keeps it alive.
#[derive(Clone)]
pub struct BufSlice {
    buf: Buf,
    off: usize,
    len: usize,
}

impl BufSlice {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `[off, off + len)` of this part.
    pub fn slice(&self, off: usize, len: usize) -> BufSlice {
        assert!(off.checked_add(len).is_some_and(|end| end <= self.len), "slice inside the slice");
        BufSlice { buf: self.buf.clone(), off: self.off + off, len }
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: `off <= len` of the allocation by construction.
        unsafe { self.buf.memory().ptr.as_ptr().add(self.off) }
    }

    /// Copies `data` to offset `off` of the slice.
    pub fn copy_in(&self, off: usize, data: &[u8]) {
        assert!(off.checked_add(data.len()).is_some_and(|end| end <= self.len), "copy inside the slice");
        // SAFETY: the range lies inside the allocation; `data` is a Rust reference and so cannot overlap memory to which
        // no Rust reference is ever handed out except inside `with`, whose closure cannot reach this call mutably.
        unsafe { std::ptr::copy(data.as_ptr(), self.ptr().add(off), data.len()) }
    }

    /// Copies bytes from offset `off` of the slice.
    pub fn copy_out(&self, off: usize, out: &mut [u8]) {
        assert!(off.checked_add(out.len()).is_some_and(|end| end <= self.len), "copy inside the slice");
        // SAFETY: as `copy_in`.
        unsafe { std::ptr::copy(self.ptr().add(off), out.as_mut_ptr(), out.len()) }
    }

    /// Copies the whole of `from` to offset `off`; the two may be the same buffer.
    pub fn copy_from(&self, off: usize, from: &BufSlice) {
        assert!(off.checked_add(from.len).is_some_and(|end| end <= self.len), "copy inside the slice");
        // SAFETY: both ranges lie inside their allocations; `copy` allows overlap.
        unsafe { std::ptr::copy(from.ptr(), self.ptr().add(off), from.len) }
    }

    /// Zeroes `[off, off + len)`.
    pub fn zero(&self, off: usize, len: usize) {
        assert!(off.checked_add(len).is_some_and(|end| end <= self.len), "zero inside the slice");
        // SAFETY: the range lies inside the allocation.
        unsafe { std::ptr::write_bytes(self.ptr().add(off), 0, len) }
    }

    pub fn fill_zero(&self) {
        self.zero(0, self.len);
    }

    /// Looks at the bytes. No operation that writes into this buffer may be in flight.
    pub fn with<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        assert_eq!(self.buf.memory().device_writes.get(), 0, "looked at a buffer that the device is writing");
        // SAFETY: inside the allocation; the device is not writing it (checked above), and nothing on this thread can
        // start such an operation while the closure runs, because starting one needs the executor.
        look(unsafe { std::slice::from_raw_parts(self.ptr(), self.len) })
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.with(|b| b.to_vec())
    }

    /// Called around an operation whose completion writes into this memory.
    pub(crate) fn device_write_begins(&self) {
        let m = self.buf.memory();
        m.device_writes.set(m.device_writes.get() + 1);
    }

    pub(crate) fn device_write_ends(&self) {
        let m = self.buf.memory();
        m.device_writes.set(m.device_writes.get() - 1);
    }
}

/// Recycles buffers by size, so that a running engine does not allocate per request.
pub struct Pool {
    free: RefCell<Vec<(usize, Vec<Rc<Memory>>)>>,
    kept: Cell<usize>,
}

/// Bytes that a pool keeps at most for later use.
const POOL_KEEP_BYTES: usize = 32 << 20;

impl Pool {
    pub fn new() -> Rc<Pool> {
        Rc::new(Pool { free: RefCell::new(Vec::new()), kept: Cell::new(0) })
    }

    /// A buffer of at least `len` bytes with arbitrary old content of this process.
    pub fn take(self: &Rc<Pool>, len: usize) -> Buf {
        let size = len.max(1).next_multiple_of(BUF_ALIGN).next_power_of_two();
        let mut free = self.free.borrow_mut();
        if let Some((_, list)) = free.iter_mut().find(|(s, _)| *s == size)
            && let Some(memory) = list.pop()
        {
            self.kept.set(self.kept.get() - size);
            return Buf(Some(memory));
        }
        Buf(Some(Rc::new(Memory::new(size, Rc::downgrade(self)))))
    }

    fn give_back(&self, memory: Rc<Memory>) {
        let size = memory.len;
        if self.kept.get() + size > POOL_KEEP_BYTES {
            return;
        }
        self.kept.set(self.kept.get() + size);
        let mut free = self.free.borrow_mut();
        match free.iter_mut().find(|(s, _)| *s == size) {
            Some((_, list)) => list.push(memory),
            None => free.push((size, vec![memory])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let pool = Pool::new();
        let a = pool.take(4096);
        a.slice(0, 4).copy_in(0, b"abcd");
        let ptr = a.slice(0, 1).ptr();
        let second_owner = a.clone();
        drop(a);
        assert_ne!(pool.take(4096).slice(0, 1).ptr(), ptr, "still owned by the second owner");
        drop(second_owner);
        let again: Vec<_> = (0..2).map(|_| pool.take(4096)).collect();
        assert!(again.iter().any(|b| b.slice(0, 1).ptr() == ptr));
    }

    #[test]
    fn a_sparse_buffer_is_as_long_as_asked_and_zero() {
        let buf = Buf::sparse((1 << 20) + 4096);
        assert_eq!(buf.len(), (1 << 20) + 4096);
        let end = buf.slice(1 << 20, 4096);
        assert!(end.with(|b| b.iter().all(|x| *x == 0)));
        end.copy_in(4092, b"last");
        assert_eq!(end.slice(4092, 4).to_vec(), b"last");
    }

    #[test]
    #[should_panic(expected = "copy inside the slice")]
    fn copies_stay_inside() {
        Pool::new().take(4096).slice(0, 8).copy_in(6, b"abc");
    }
}
