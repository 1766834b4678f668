"""A GPU that is not there: tensors that were moved to it compute on the CPU, but do not mix with others.

with Pretended() as gpu:
    x = torch.ones(3).to(gpu.device)
    x + torch.ones(3)     # an error, as on a real GPU
    gpu.waits             # how often the CPU had to wait for a result

It sees what the thread that opened it calls from Python; what torch calls inside a function, it does not see.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

WAITS = {"cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "masked_select"}
CPU_ONLY = {"numpy", "__array__", "__array_wrap__"}
MAY_MIX = {"copy_", "_has_compatible_shallow_copy_type"}


class Pretended(TorchFunctionMode):
    device = torch.device("cuda", 0)

    def __init__(self):
        super().__init__()
        self.there, self.waits = WeakTensorKeyDictionary(), 0

    def tensors(self, values, there):
        return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor) and (x in self.there) == there]

    def moved(self, values):
        for x in self.tensors(values, False):
            self.there[x] = True
        return values

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.__name__
        if name in ("__get__", "__set__"):  # of an attribute
            name = f"{function.__self__.__name__}.{name}"
        here, far = bool(self.tensors(args[:1], False)), bool(self.tensors((args, kwargs), True))
        if name == "device.__get__":
            return self.device if far else torch.device("cpu")
        if name == "is_cpu.__get__":
            return not far
        if far and name in CPU_ONLY:
            raise TypeError(f"{name}: can't convert {self.device} device type tensor to numpy; use cpu() first")
        if name in ("to", "cpu"):
            return self.to(name, *args, **kwargs)
        if name == "data.__set__":  # of a parameter, when its module is moved
            function(*args)
            self.there.pop(args[0], None)
            self.there.update({args[0]: True} if args[1] in self.there else {})
            return None
        if name in ("__getitem__", "__setitem__"):
            self.check_index(name, here, *args)
        elif far and name not in MAY_MIX and (strange := [x for x in self.tensors((args, kwargs), False) if x.ndim]):
            raise RuntimeError(f"{name}: one tensor is on {self.device}, one of {tuple(strange[0].shape)} on the CPU")
        self.waits += far and name in WAITS
        if kwargs.get("device") is not None:
            far = torch.device(kwargs["device"]).type == self.device.type
            kwargs = kwargs | {"device": "cpu"}
        out = list(function(*args, **kwargs)) if name == "__iter__" else function(*args, **kwargs)
        out = self.moved(out) if far else out
        return iter(out) if name == "__iter__" else out

    def to(self, name, x, *args, **kwargs):
        """x.cpu(), or x.to(a device, a type, a tensor)"""
        given = [*args, *kwargs.values()]
        places = [torch.device(one) for one in given if isinstance(one, (str, torch.device))]
        models = [one for one in given if isinstance(one, torch.Tensor)]
        was = far = x in self.there
        if name == "cpu":
            far = False
        elif places or models:
            far = places[0].type != "cpu" if places else models[0] in self.there
        types = [one for one in given if isinstance(one, torch.dtype)] + [one.dtype for one in models]
        x = x.clone() if far != was else x
        x = x.to(types[0]) if types else x
        self.waits += was and not far
        return self.moved(x) if far else x

    def check_index(self, name, here, x, index, value=None):
        """An index may be on the CPU, but not on a GPU where the indexed is not; a value must be beside it."""
        masks = [i for i in self.tensors([index], True) if i.dtype == torch.bool]
        self.waits += bool(masks) and name == "__getitem__"
        if here and self.tensors([index], True):
            raise RuntimeError(f"{name}: the index is on {self.device}, what it indexes on the CPU")
        if isinstance(value, torch.Tensor) and value.ndim and (value in self.there) == here:
            raise RuntimeError(f"{name}: value and tensor are not on the same device")

    def loaded(self, values):
        """A checkpoint's tensors on this device."""
        return tree_map(lambda x: x.to(self.device) if isinstance(x, torch.Tensor) else x, values)
