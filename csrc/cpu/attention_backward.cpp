// The backward pass of attention in fp32, for sequences whose scores stay in the cache: tiles of a
// picture, short prompts.
//
// Bound by FLOPs: five products, of the scores once more (nothing of the forward pass was kept), of
// dP, dQ, dK and dV. With P = softmax(scale Q Kᵀ) and O = P V:
//
//     dV = Pᵀ dO    dP = dO Vᵀ    dS = P (dP - rowsum(P dP))    dQ = scale dS K    dK = scale dSᵀ Q
//
// as in FlashAttention (Dao et al., arXiv 2205.14135), of which this is the case of one block.

#include "attention_backward.h"

#include "columns.h"
#include "matrix/dense_product.h"
#include "vec_math.h"

#if !defined(FLASHVL_LEVEL_scalar)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

using Args = AttentionBackwardArgs;

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Where a thread's matrices lie, in bytes.
template <class P>
struct Memory {
  int64_t p, ds, dq, dk, dv, left, right, keys, values, keys_across, bytes;

  explicit Memory(const Args& a) : bytes(0) {
    const int64_t n = padded<P>(a.queries), s = padded<P>(a.keys), d = padded<P>(a.head_dim);
    p = floats(n * s);
    ds = floats(n * s);
    dq = floats(n * d);
    dk = floats(s * d);
    dv = floats(s * d);
    const int64_t widest = larger(larger(n, s), d);
    left = take(P::operand_bytes(larger(n, s), widest));
    right = take(P::operand_bytes(d, n));
    keys = take(P::operand_bytes(s, d));
    values = take(P::operand_bytes(s, d));
    keys_across = take(P::operand_bytes(d, s));
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
  int64_t floats(int64_t count) { return take(count * static_cast<int64_t>(sizeof(float))); }
};

template <class P>
class Task {
  using Element = typename P::Element;
  using Operand = typename P::Operand;

 public:
  Task(const Args& args, int64_t task, char* memory)
      : a_(args), at_(args), memory_(memory), batch_(task / args.kv_heads) {
    kv_head_ = task % args.kv_heads;
    keys_ = args.lengths ? args.lengths[batch_] : args.keys;
    rows_ = args.lengths && keys_ < args.queries ? keys_ : args.queries;
    first_ = args.queries - rows_;
    key_stride_ = padded<P>(keys_);
    channel_stride_ = padded<P>(args.head_dim);
  }

  void run() {
    const int64_t group = a_.heads / a_.kv_heads, depth = a_.head_dim;
    const AttentionHeads &k = a_.k, &v = a_.v;
    const float* key = k.data + batch_ * k.batch + kv_head_ * k.head;
    const float* value = v.data + batch_ * v.batch + kv_head_ * v.head;
    const bool any = rows_ > 0 && keys_ > 0;
    Operand keys = {}, values = {}, keys_across = {};
    if (any) {
      keys = pack_all<P, true>({key, k.token, 1, keys_, depth}, parts(at_.keys));
      values = pack_all<P, true>({value, v.token, 1, keys_, depth}, parts(at_.values));
      keys_across = pack_all<P, true>({key, 1, k.token, depth, keys_}, parts(at_.keys_across));
    }
    for (int64_t head = kv_head_ * group; head < (kv_head_ + 1) * group; ++head) {
      if (any) run_head(head, head > kv_head_ * group, keys, values, keys_across);
      write(a_.dq, head, floats(at_.dq), any ? first_ : a_.queries, a_.queries, a_.queries);
    }
    write(a_.dk, kv_head_, floats(at_.dk), 0, any ? keys_ : 0, a_.keys);
    write(a_.dv, kv_head_, floats(at_.dv), 0, any ? keys_ : 0, a_.keys);
  }

 private:
  float* floats(int64_t at) const { return reinterpret_cast<float*>(memory_ + at); }
  Element* parts(int64_t at) const { return reinterpret_cast<Element*>(memory_ + at); }

  void run_head(int64_t head, bool add, const Operand& keys, const Operand& values,
                const Operand& keys_across) {
    const int64_t depth = a_.head_dim;
    const float* q = row_of(a_.q, head);
    const float* dout = row_of(a_.dout, head);
    float *p = floats(at_.p), *ds = floats(at_.ds);
    multiply({q, a_.q.token, 1, rows_, depth}, keys, p, key_stride_);
    multiply({dout, a_.dout.token, 1, rows_, depth}, values, ds, key_stride_);
    for (int64_t r = 0; r < rows_; ++r) soften(p + r * key_stride_, ds + r * key_stride_, r);
    multiply({ds, key_stride_, 1, rows_, keys_}, keys_across, floats(at_.dq), channel_stride_);
    sum(p, {dout, 1, a_.dout.token, depth, rows_}, floats(at_.dv), add);
    sum(ds, {q, 1, a_.q.token, depth, rows_}, floats(at_.dk), add);
  }

  const float* row_of(const AttentionHeads& heads, int64_t head) const {
    return heads.data + batch_ * heads.batch + first_ * heads.token + head * heads.head;
  }

  void multiply(const MatrixSource& left, const Operand& right, float* to, int64_t stride) {
    P::multiply_operands(pack_all<P, false>(left, parts(at_.left)), right, to, stride, false);
  }

  // `to` [keys, D] (+)= leftᵀ right, over the queries.
  void sum(const float* left, const MatrixSource& right, float* to, bool add) {
    const Operand a = pack_all<P, false>({left, 1, key_stride_, keys_, rows_}, parts(at_.left));
    const Operand b = pack_all<P, true>(right, parts(at_.right));
    P::multiply_operands(a, b, to, channel_stride_, add);
  }

  // A row of scores becomes P, one of dP becomes scale dS; zeros where a key is not seen.
  void soften(float* p, float* ds, int64_t r) const {
    const int64_t seen = a_.lengths ? keys_ - rows_ + r + 1 : keys_;
    const F32 scale = splat(a_.scale);
    float most = -__builtin_inff();
    bool nan = false;
    for (int64_t c = 0; c < seen; ++c) {
      p[c] *= a_.scale;
      most = p[c] > most ? p[c] : most;
      nan = nan || p[c] != p[c];
    }
    if (most == -__builtin_inff() && !nan) {  // as PyTorch's kernel: a row that sees nothing
      for (int64_t c = 0; c < key_stride_; ++c) p[c] = ds[c] = 0.0f;
      return;
    }
    const F32 top = splat(most);
    F32 total = zero(), along = zero();
    over_columns(seen, [&](int64_t c, auto n) {
      const F32 weight = exp(load_at(p + c, n) - top);
      store_at(p + c, weight, n);
      const F32 there = load_at(p + c, n);  // zeros in the lanes past the end
      total = total + there;
      along = fma(there, load_at(ds + c, n), along);
    });
    const float sum = reduce_add(total);
    const F32 inverse = splat(1.0f / sum), mean = splat(reduce_add(along) / sum);
    over_columns(seen, [&](int64_t c, auto n) {
      const F32 weight = load_at(p + c, n) * inverse;
      store_at(p + c, weight, n);
      store_at(ds + c, weight * (load_at(ds + c, n) - mean) * scale, n);
    });
    for (int64_t c = seen; c < key_stride_; ++c) p[c] = ds[c] = 0.0f;
  }

  // Head `head` of a gradient of `count` tokens: those of [first, last) from padded rows, the
  // others zero.
  void write(const AttentionGradient& to, int64_t head, const float* from, int64_t first,
             int64_t last, int64_t count) const {
    float* out = to.data + batch_ * to.batch + head * to.head;
    for (int64_t row = 0; row < count; ++row, out += to.token) {
      const bool there = row >= first && row < last;
      const float* values = there ? from + (row - first) * channel_stride_ : nullptr;
      over_columns(a_.head_dim, [&](int64_t c, auto n) {
        store_at(out + c, there ? load_at(values + c, n) : zero(), n);
      });
    }
  }

  const Args& a_;
  const Memory<P> at_;
  char* const memory_;
  const int64_t batch_;
  int64_t kv_head_, keys_, rows_, first_, key_stride_, channel_stride_;
};

}  // namespace

int64_t attention_backward_bytes(const AttentionBackwardArgs& args) {
  return with_product(args.bf16, [&]<class P>(P) { return Memory<P>(args).bytes; });
}

void attention_backward(const AttentionBackwardArgs& args, int64_t task, char* memory) {
  with_product(args.bf16, [&]<class P>(P) { Task<P>(args, task, memory).run(); });
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
