// The best k of vocabulary . RMSNorm(x), without ever holding the logits.
//
// Bound by the bytes of the vocabulary (467 MB for Flash-VL 2B in bf16), read once for up to eight
// rows. The 16 logits of a panel are compared while they are in registers or the first-level
// cache. Every task keeps its best k in a heap whose root is the worst; the order is total (ties go
// to the lower index, NaN counts as the largest), so the result does not depend on the split.

#include "argmax_head.h"

#include "matrix/few_rows.h"
#include "matrix/normalised_row.h"
#include "matrix/product_parts.h"
#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

inline bool before(const Candidate& a, const Candidate& b) {
  const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
  if (a_is_nan != b_is_nan) return a_is_nan;
  if (!a_is_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

inline void swap(Candidate& a, Candidate& b) {
  const Candidate old = a;
  a = b;
  b = old;
}

// A heap of the best candidates so far, the worst of them at the root.
class Best {
 public:
  Best() = default;
  Best(Candidate* heap, int64_t capacity) : heap_(heap), capacity_(capacity) {}

  // Candidates come in the order of their index, so an equal one never enters a full heap.
  void offer(Candidate c) {
    if (size_ < capacity_) return push(c);
    if (c.value <= heap_[0].value || !before(c, heap_[0])) return;
    heap_[0] = c;
    sink(size_);
  }

  // Turns the heap into a list, best first.
  void sort() {
    for (int64_t end = size_ - 1; end > 0; --end) {
      swap(heap_[0], heap_[end]);
      sink(end);
    }
  }

 private:
  void push(Candidate c) {
    int64_t at = size_++;
    heap_[at] = c;
    for (; at > 0 && before(heap_[(at - 1) / 2], heap_[at]); at = (at - 1) / 2) {
      swap(heap_[(at - 1) / 2], heap_[at]);
    }
  }

  // Moves the root down to its place among the first `size`.
  void sink(int64_t size) {
    for (int64_t at = 0, child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && before(heap_[child], heap_[child + 1])) ++child;
      if (!before(heap_[at], heap_[child])) return;
      swap(heap_[at], heap_[child]);
      at = child;
    }
  }

  Candidate* heap_ = nullptr;
  int64_t capacity_ = 0;
  int64_t size_ = 0;
};

template <class T>
void prepare(const ArgmaxHeadArgs& args, int64_t first, int count) {
  const int64_t columns = args.w.columns;
  const T* weight = static_cast<const T*>(args.norm_weight);
  for (int r = 0; r < count; ++r) {
    const T* x = static_cast<const T*>(args.x) + (first + r) * args.x_stride;
    const NormalisedRow<T> row(x, columns, weight, nullptr, args.eps);
    for_lanes(columns, [&](int64_t c, int64_t n) { store_up_to(args.row + c, row.at(c, n), n); });
    prepare_row(args.w, args.dtype, args.row,
                static_cast<char*>(args.prepared) + r * few_rows_bytes(args.w));
  }
}

inline Range panels_of(const ArgmaxHeadArgs& args, int64_t task) {
  return Range(panels_of(args.w), task, args.tasks);
}

inline int64_t list_size(const ArgmaxHeadArgs& args, int64_t task) {
  const Range range = panels_of(args, task);
  const int64_t end = range.end * kPanel < args.w.rows ? range.end * kPanel : args.w.rows;
  const int64_t words = end - range.begin * kPanel;
  return words < args.capacity ? words : args.capacity;
}

template <class T>
void search(const ArgmaxHeadArgs& args, int64_t task, int count) {
  const Range range = panels_of(args, task);
  Candidate* const lists = args.best + task * kFewRows * args.capacity;
  Best best[kFewRows];
  for (int r = 0; r < count; ++r) best[r] = Best(lists + r * args.capacity, args.capacity);
  alignas(64) float results[kPanelResults];
  for (int64_t panel = range.begin; panel < range.end;) {
    const Panels panels = panels_from(panel, range.end, count);
    panels_dot(args.w, args.dtype, panels, args.prepared, count, results);
    for (int n = 0; n < panels.count; ++n, ++panel) {
      float* logits = results + n * kFewRows * kPanel;
      for (int i = 0; i < count * kPanel; i += kLanes) {
        store(logits + i, round_to<T>(load(logits + i)));
      }
      const int64_t words = rows_of(args.w, panel);
      for (int r = 0; r < count; ++r) {
        for (int64_t c = 0; c < words; ++c) {
          best[r].offer({logits[r * kPanel + c], panel * kPanel + c});
        }
      }
    }
  }
  for (int r = 0; r < count; ++r) best[r].sort();
}

// Takes the best of the first candidates of all lists k times.
template <class T>
void merge(const ArgmaxHeadArgs& args, int64_t row, int slot) {
  T* values = static_cast<T*>(args.values) + row * args.k;
  int64_t* indices = args.indices + row * args.k;
  const auto list = [&](int64_t t) { return args.best + (t * kFewRows + slot) * args.capacity; };
  for (int64_t t = 0; t < args.tasks; ++t) args.taken[t] = 0;
  for (int64_t i = 0; i < args.k; ++i) {
    int64_t from = -1;
    for (int64_t t = 0; t < args.tasks; ++t) {
      if (args.taken[t] == list_size(args, t)) continue;
      if (from < 0 || before(list(t)[args.taken[t]], list(from)[args.taken[from]])) from = t;
    }
    const Candidate c = list(from)[args.taken[from]++];
    store_some(values + i, splat(c.value), 1);
    indices[i] = c.index;
  }
}

template <class T>
void merge_rows(const ArgmaxHeadArgs& args, int64_t first, int count) {
  for (int r = 0; r < count; ++r) merge<T>(args, first + r, r);
}

}  // namespace

void argmax_head_prepare(const ArgmaxHeadArgs& args, int64_t first, int count) {
  switch (args.dtype) {
    case DType::f32:
      return prepare<float>(args, first, count);
    case DType::bf16:
      return prepare<BF16>(args, first, count);
    case DType::f16:
      return prepare<F16>(args, first, count);
  }
}

void argmax_head_search(const ArgmaxHeadArgs& args, int64_t task, int count) {
  switch (args.dtype) {
    case DType::f32:
      return search<float>(args, task, count);
    case DType::bf16:
      return search<BF16>(args, task, count);
    case DType::f16:
      return search<F16>(args, task, count);
  }
}

void argmax_head_merge(const ArgmaxHeadArgs& args, int64_t first, int count) {
  switch (args.dtype) {
    case DType::f32:
      return merge_rows<float>(args, first, count);
    case DType::bf16:
      return merge_rows<BF16>(args, first, count);
    case DType::f16:
      return merge_rows<F16>(args, first, count);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
