// The queue of cp.async copies that a thread has issued and that have not arrived yet.
#include "emulator/state.h"

namespace sysgen::emulator {

static_assert((kMaxCopies & (kMaxCopies - 1)) == 0 && (kMaxCopyGroups & (kMaxCopyGroups - 1)) == 0,
              "running counts wrap around");

void clear_copies(CopyQueue& q) { q.issued = q.arrived = q.committed = q.complete = 0; }

void check_copies_done(const Fibre& f) {
  const CopyQueue& q = f.queue;
  if (q.arrived != q.issued)
    fail(q.copies[q.arrived % kMaxCopies].where,
         "the thread ended before its cp.async copies were waited for, the first of them");
}

AsyncCopy& async_issue(unsigned bytes, const Location& where) {
  CopyQueue& q = machine.running->queue;
  if (q.issued - q.arrived == kMaxCopies)
    fail(where, "more than %u cp.async copies of one thread are in flight", kMaxCopies);
  AsyncCopy& copy = q.copies[q.issued++ % kMaxCopies];
  copy.bytes = bytes;
  copy.where = where;
  counters.cp_async_bytes += bytes;
  return copy;
}

void async_commit(const Location& where) {
  CopyQueue& q = machine.running->queue;
  if (q.committed - q.complete == kMaxCopyGroups)
    fail(where, "more than %u cp.async groups of one thread are in flight", kMaxCopyGroups);
  q.group_end[q.committed++ % kMaxCopyGroups] = q.issued;
}

AsyncCopy* async_arrived(unsigned pending_groups) {
  CopyQueue& q = machine.running->queue;
  for (; q.committed - q.complete > pending_groups; ++q.complete)
    if (static_cast<int>(q.group_end[q.complete % kMaxCopyGroups] - q.arrived) > 0) {
      AsyncCopy& copy = q.copies[q.arrived++ % kMaxCopies];
      note_cp_async(copy, machine.running);
      return &copy;
    }
  return nullptr;
}

}  // namespace sysgen::emulator
