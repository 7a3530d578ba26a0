// Host models of memory.cuh: the same pointers, every access handed to the checker with its line.
#pragma once

#include <type_traits>

#include "api.h"
#include "device.h"

namespace flashvl::cuda {

#define FLASHVL_AT simt::Site at = simt::Site::current()

template <class T>
struct Global {
  using Value = std::remove_const_t<T>;
  T* address;

  explicit operator bool() const { return address != nullptr; }
  Global operator+(int64_t i) const { return {offset(i)}; }
  Value load(int64_t i, FLASHVL_AT) const {
    Value value;
    simt::global_read(&value, offset(i), sizeof(T), at);
    return value;
  }
  template <int N>
  Vec<Value, N> load(int64_t i, FLASHVL_AT) const {
    Vec<Value, N> values;
    simt::global_read(&values, offset(i), sizeof(values), at);
    return values;
  }
  template <int N>
  Vec<Value, N> load_once(int64_t i, FLASHVL_AT) const {
    return load<N>(i, at);
  }
  void store(int64_t i, Value value, FLASHVL_AT) const {
    simt::global_write(offset(i), &value, sizeof(T), at);
  }
  template <int N>
  void store(int64_t i, const Vec<Value, N>& values, FLASHVL_AT) const {
    simt::global_write(offset(i), &values, sizeof(values), at);
  }
  Value atomic_add(int64_t i, Value value, FLASHVL_AT) const {
    if (!simt::global_update(offset(i), sizeof(T), at)) return Value{};
    const Value before = *offset(i);
    *offset(i) = before + value;
    return before;
  }

 private:
  // In integers: an address outside of its array is what the checker is there to see.
  T* offset(int64_t i) const {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(address) +
                                static_cast<uintptr_t>(i) * sizeof(T));
  }
};

template <class T>
struct Shared {
  using Value = std::remove_const_t<T>;
  T* address;

  Shared operator+(int64_t i) const { return {offset(i)}; }
  Value load(int64_t i, FLASHVL_AT) const {
    Value value;
    simt::shared_read(&value, offset(i), sizeof(T), at);
    return value;
  }
  template <int N>
  Vec<Value, N> load(int64_t i, FLASHVL_AT) const {
    Vec<Value, N> values;
    simt::shared_read(&values, offset(i), sizeof(values), at);
    return values;
  }
  void store(int64_t i, Value value, FLASHVL_AT) const {
    simt::shared_write(offset(i), &value, sizeof(T), at);
  }
  template <int N>
  void store(int64_t i, const Vec<Value, N>& values, FLASHVL_AT) const {
    simt::shared_write(offset(i), &values, sizeof(values), at);
  }
  Value atomic_add(int64_t i, Value value, FLASHVL_AT) const {
    if (!simt::shared_update(offset(i), sizeof(T), at)) return Value{};
    const Value before = *offset(i);
    *offset(i) = before + value;
    return before;
  }

 private:
  T* offset(int64_t i) const {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(address) +
                                static_cast<uintptr_t>(i) * sizeof(T));
  }
};

#define FLASHVL_SHARED(T, name, count)                                                    \
  const Shared<T> name {                                                                  \
    static_cast<T*>(                                                                      \
        flashvl::simt::shared_array(sizeof(T) * (count), flashvl::simt::Site::current())) \
  }

template <class T>
Shared<T> dynamic_shared(int64_t offset_bytes = 0, FLASHVL_AT) {
  return {static_cast<T*>(simt::shared_dynamic(offset_bytes, at))};
}

}  // namespace flashvl::cuda
