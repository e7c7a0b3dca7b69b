"""The loop as public solutions of the assignment have it: ``.item()`` after every step."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.elsewhere.speed import Task, albumentations_loader, one_cycle


def train(task: Task) -> None:
    torch.manual_seed(0)
    device, loader = torch.device(task.device), albumentations_loader(task)
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
