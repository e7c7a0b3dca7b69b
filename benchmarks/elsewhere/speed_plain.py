"""The loop as public solutions of the assignment have it: ``.item()`` after every step."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.elsewhere.speed import Task, one_cycle
from transformation import get_train_aug_transform

PACKAGES = ("albumentations",)


def train(task: Task) -> None:
    torch.manual_seed(0)
    device, images = torch.device(task.device), task.images
    transform = get_train_aug_transform(images.mean, images.std)
    loader = DataLoader(
        images.with_transform(transform), task.batch_size, shuffle=True,
        num_workers=task.workers, pin_memory=task.device == "cuda",
    )  # fmt: skip
    model = task.network().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    scheduler = one_cycle(optimizer, task, len(loader))
    for _ in range(task.epochs):
        task.begin()
        model.train()
        correct = processed = 0
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            with torch.autocast(task.device, torch.bfloat16, enabled=task.autocast):
                output = model(data)
                loss = criterion(output, target)
            loss.backward()
            optimizer.step()
            scheduler.step()
            correct += (output.argmax(dim=1) == target).sum().item()
            processed += len(data)
            f"loss={loss.item():.4f} accuracy={100 * correct / processed:.2f}"  # as a bar would
        task.end()
