// Barriers of a block and the meetings of a warp's lanes.
#include <algorithm>

#include "emulator/sanitizer.h"
#include "emulator/state.h"

namespace sysgen::emulator {

namespace {

// One address per barrier and parity of its phase, behind them one per warp and meeting.
char* barrier_edge(Block& b, unsigned id) { return b.edges + (id * 2 + b.barriers[id].phase % 2) * 8; }
char* meeting_edge(const Fibre& f, unsigned number) {
  return f.block->edges + (kNumBarriers * 2 + f.context.warp * kMeetingEdges + number % kMeetingEdges) * 8;
}

int reduced(Reduce reduce, int count, unsigned threads) {
  switch (reduce) {
    case Reduce::count:
      return count;
    case Reduce::all:
      return count == static_cast<int>(threads);
    case Reduce::any:
      return count != 0;
    default:
      return 0;
  }
}

// The waiting threads stay sorted, so that forward and reverse mean what they say.
void add(Barrier& barrier, Fibre* f) {
  unsigned i = barrier.arrived++;
  for (; i > 0 && barrier.waiting[i - 1]->context.linear > f->context.linear; --i)
    barrier.waiting[i] = barrier.waiting[i - 1];
  barrier.waiting[i] = f;
}

Meeting& meeting_of(Warp& warp, const WarpOperation& operation, unsigned mask, const Location& where) {
  Meeting* free = nullptr;
  for (unsigned i = 0; i < warp.num_meetings; ++i) {
    Meeting& m = warp.meetings[i];
    if (!m.arrived) {
      if (!free) free = &m;
      continue;
    }
    if (m.mask != mask) continue;  // meetings of other masks are legal, if every lane gets there in the end
    if (m.operation != &operation)
      fail(where, "lanes of one mask are in different warp operations: %s here, %s at line %u",
           operation.name, m.operation->name, static_cast<unsigned>(m.where.line()));
    if (operation.aligned && !same_place(m.where, where))
      fail(where, "lanes of a warp reach different %s: this one and line %u", operation.name,
           static_cast<unsigned>(m.where.line()));
    return m;
  }
  if (!free) free = &warp.meetings[warp.num_meetings++];
  free->arrived = 0;  // a kernel that failed may have left something here
  free->operation = &operation;
  free->mask = mask;
  free->where = where;
  free->number = warp.next_number++;
  return *free;
}

void wake(const Meeting& m) {
  unsigned lanes[32];
  for (unsigned i = 0; i < 32; ++i) lanes[i] = i;
  bool behind_others = false;
  if (machine.order == Order::random) {
    for (unsigned i = 32; i > 1; --i) std::swap(lanes[i - 1], lanes[random_below(i)]);
    behind_others = random_below(8) == 0;  // now and then other warps overtake this one
  } else if (machine.order == Order::forward) {
    std::reverse(lanes, lanes + 32);  // who is put on the stack last runs first
  }
  for (unsigned lane : lanes)
    if (m.mask >> lane & 1) behind_others ? make_ready(m.lanes[lane]) : make_next(m.lanes[lane]);
}

}  // namespace

int barrier(unsigned id, unsigned threads, const char* name, const Location& where, int value,
            Reduce reduce) {
  Fibre* f = machine.running;
  Block& b = *f->block;
  Barrier& bar = b.barriers[id];
  f->where = where;  // the last to arrive does not wait
  const unsigned expected = threads ? threads : b.threads;
  if (expected > b.threads) fail(where, "%s for %u threads in a block of %u", name, expected, b.threads);
  if (id == 0 && b.alive != b.threads)
    fail(where, "%s after %u threads of the block have left the kernel", name, b.threads - b.alive);
  if (!bar.arrived) {
    bar.expected = expected;
    bar.name = name;
    bar.where = where;
    bar.count = 0;
  } else if (bar.expected != expected) {
    fail(where, "%s with %u threads here and %u at line %u", name, expected, bar.expected,
         static_cast<unsigned>(bar.where.line()));
  } else if (id == 0 && !same_place(bar.where, where)) {
    fail(where, "threads of one block meet at different barriers: %s here, %s at line %u", name, bar.name,
         static_cast<unsigned>(bar.where.line()));
  }
  bar.count += value;
  const char* edge = barrier_edge(b, id);
  hb_release(edge);
  add(bar, f);
  if (bar.arrived == expected) {
    bar.result = reduced(reduce, bar.count, expected);
    for (unsigned i = 0; i < expected; ++i)
      make_ready(bar.waiting[machine.order == Order::reverse ? expected - 1 - i : i]);
    bar.arrived = 0;
    ++bar.phase;
    ++counters.barriers;
    progress();
    switch_to_next();
  } else {
    wait(name, where);
  }
  hb_acquire(edge);
  return bar.result;
}

void leave_warp(Fibre& f) {
  Warp& warp = *f.warp;
  for (unsigned i = 0; i < warp.num_meetings; ++i) {
    const Meeting& m = warp.meetings[i];
    if (m.arrived && m.mask >> f.context.lane & 1)
      fail(m.where, "this thread has left the kernel while others of its mask %08x wait in %s", m.mask,
           m.operation->name);
  }
  warp.alive &= ~(1u << f.context.lane);
}

void warp_operation(const WarpOperation& operation, unsigned mask, void* operands, const Location& where) {
  Fibre* f = machine.running;
  const unsigned lane = f->context.lane, bit = 1u << lane;
  f->where = where;
  if (!(mask & bit)) fail(where, "%s: lane %u is not in its own mask %08x", operation.name, lane, mask);
  if (mask & ~f->warp->alive)
    fail(where, "%s: the mask %08x names lanes %08x, which have left the kernel or do not exist",
         operation.name, mask, mask & ~f->warp->alive);
  Meeting& m = meeting_of(*f->warp, operation, mask, where);
  const char* edge = meeting_edge(*f, m.number);
  if (operation.orders_memory) hb_release(edge);
  m.operands[lane] = operands;
  m.lanes[lane] = f;
  m.arrived |= bit;
  if (m.arrived == mask) {
    if (operation.compute) operation.compute(mask, m.operands);
    ++counters.warp_operations;
    m.arrived = 0;
    progress();
    wake(m);
    switch_to_next();
  } else {
    wait(operation.name, where);
  }
  if (operation.orders_memory) hb_acquire(edge);
}

}  // namespace sysgen::emulator
