// Gloo's collectives as libtorch carries them, for Rust: c10d's ProcessGroupGloo over its TCPStore.
//
// The Python wheel has c10d's headers but not gloo's, of which c10d's name only types behind pointers: they are declared here, and build.rs
// puts empty files in the place of gloo's headers. No layout is guessed: that of ProcessGroupGloo comes from c10d's own header.

#define USE_C10D_GLOO
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
namespace transport {
class Device;
class UnboundBuffer;
}  // namespace transport
namespace rendezvous {
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};
}  // namespace rendezvous
}  // namespace gloo

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

// Runs `work`; on an exception writes what it says, cut to `room` bytes with the final zero, and gives false.
template <typename Work>
bool guarded(char* error, size_t room, Work&& work) {
  std::string text = "an exception of unknown type";
  try {
    work();
    return true;
  } catch (const c10::Error& e) {
    text = e.what_without_backtrace();
  } catch (const std::exception& e) {
    text = e.what();
  } catch (...) {
  }
  std::strncpy(error, text.c_str(), room - 1);
  error[room - 1] = 0;
  return false;
}

at::Tensor view(void* data, int64_t len, at::ScalarType type) {
  return at::from_blob(data, {len}, at::TensorOptions().dtype(type));
}

}  // namespace

struct hrm_gloo {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> group;
};

extern "C" {

hrm_gloo* hrm_gloo_open(
    const char* host, uint16_t port, int serve, const char* prefix, int rank, int world, int64_t timeout_ms, char* error, size_t room) {
  hrm_gloo* opened = nullptr;
  guarded(error, room, [&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions at;
    at.port = port;
    at.isServer = serve != 0;
    at.numWorkers = world;
    // Whoever starts the store, the group waits for all of its members below.
    at.waitWorkers = false;
    at.timeout = timeout;
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::TCPStore>(host, at);
    store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    store->setTimeout(timeout);
    auto options = c10d::ProcessGroupGloo::Options::create_default(timeout);
    c10::intrusive_ptr<c10d::Backend> group = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, options);
    opened = new hrm_gloo{store, group};
  });
  return opened;
}

int hrm_gloo_sum(hrm_gloo* g, float* values, int64_t len, char* error, size_t room) {
  return guarded(error, room, [&] {
    std::vector<at::Tensor> tensors{view(values, len, at::kFloat)};
    g->group->allreduce(tensors)->wait();
  });
}

int hrm_gloo_gather(hrm_gloo* g, const uint8_t* mine, int64_t len, uint8_t* all, int world, char* error, size_t room) {
  return guarded(error, room, [&] {
    std::vector<at::Tensor> inputs{view(const_cast<uint8_t*>(mine), len, at::kByte)};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int r = 0; r < world; ++r) {
      outputs[0].push_back(view(all + r * len, len, at::kByte));
    }
    g->group->allgather(outputs, inputs)->wait();
  });
}

int hrm_gloo_broadcast(hrm_gloo* g, uint8_t* bytes, int64_t len, char* error, size_t room) {
  return guarded(error, room, [&] {
    std::vector<at::Tensor> tensors{view(bytes, len, at::kByte)};
    g->group->broadcast(tensors)->wait();
  });
}

void hrm_gloo_close(hrm_gloo* g) {
  delete g;
}
}
